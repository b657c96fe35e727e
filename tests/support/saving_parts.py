"""Saves checkpoints in all processes that were started, each its part: saving_parts.py MODEL FOLDER ADAPTERS.

ADAPTERS is yes or no. FOLDER/checkpoints gets step 1 in parts and step 2, the same weights, in whole files.
FOLDER/gathered.pt holds those weights, and FOLDER/found_RANK.json what the process found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from lens.distributed.collectives import gather_tensor, is_first, process_group
from lens.distributed.processes import exit_at_once, rank
from lens.models.loading import load_model
from lens.models.lora import add_adapters
from lens.models.sharding import call_with_weights, gather_named_weights, shard_model
from lens.runs import parts
from lens.runs.checkpoints import restore_optimizer, save_checkpoint
from tests.support.hollow_loading import LORA

STATE = {"config": {}, "prompts": {}}
SMALL = 20_000  # bytes of a file, so that there are several


def trained(folder: str, adapted: bool) -> tuple:
    """The model, its tokenizer and its optimizer, sharded and ready to train."""
    model, tokenizer = load_model(folder)
    if adapted:
        add_adapters(model, LORA, seed=1)
    shard_model(model)
    return model, tokenizer, torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)


def update(model, optimizer) -> None:
    optimizer.zero_grad()
    call_with_weights(model, lambda m: m(torch.tensor([[1, 2, 3]])).logits.square().mean()).backward()
    optimizer.step()


if __name__ == "__main__":
    source, folder, adapted = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "yes"
    parts.BYTES_A_PART = SMALL
    with process_group():
        model, tokenizer, optimizer = trained(source, adapted)
        for _ in range(2):
            update(model, optimizer)
        gathered = {name: tensor.clone() for name, tensor in gather_named_weights(model)}
        gather, whole_tensors = DTensor.full_tensor, []
        DTensor.full_tensor = lambda tensor: whole_tensors.append(tensor.numel()) or gather(tensor)
        save = folder / "checkpoints", model, tokenizer, optimizer
        first = save_checkpoint(*save, STATE | {"step": 1}, keep=2)
        DTensor.full_tensor = gather
        second = save_checkpoint(*save, STATE | {"step": 2}, keep=2, whole=True)
        found = {"gathered": sum(whole_tensors), "trained": sum(p.numel() for p in save[3].param_groups[0]["params"])}
        if not adapted:
            again, _, other = trained(str(first), adapted)
            restore_optimizer(first, again, other, optimizer.state_dict()["param_groups"])
            pairs = zip(gather_named_weights(again), gathered.items(), strict=True)
            found["weights"] = all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
            update(again, other)
            update(model, optimizer)
            found["next weights"] = all(
                torch.equal(gather_tensor(a.detach()), gather_tensor(b.detach()))
                for a, b in zip(again.parameters(), model.parameters(), strict=True)
            )
        if is_first():
            torch.save(gathered, folder / "gathered.pt")
        (folder / f"found_{rank()}.json").write_text(json.dumps(found))
    exit_at_once()
