"""Loads models in all processes that were started, each its part: hollow_loading.py FOLDER.

FOLDER has a model in each of its folders; those whose name ends in "adapted" get adapters. FOLDER/found_RANK.json says
how each compares with the model that transformers loads whole.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from lens.distributed.collectives import gather_tensor, local_part, process_group
from lens.distributed.processes import exit_at_once, rank
from lens.models.loading import load_weights
from lens.models.lora import add_adapters, iterate_adapter_weights
from lens.models.sharding import call_with_weights, gather_named_weights, shard_model
from lens.sampling.transformers import TransformersSampler

LORA = OmegaConf.create({"r": 4, "alpha": 8, "target_modules": "all-linear"})
IDS = torch.arange(3, 13)[None]


class NoTokenizer:
    eos_token_id = 2


def compare(folder: Path) -> dict[str, object]:
    """What was loaded in parts, beside the whole."""
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = load_weights(str(folder), torch.float32, None)
    found = {"empty": all(p.is_meta for p in model.parameters())}
    sampler = TransformersSampler(model, NoTokenizer(), max_num_seqs=4)
    if adapted := folder.name.endswith("adapted"):
        add_adapters(whole, LORA, seed=5)
        add_adapters(model, LORA, seed=5)
    shard_model(model)
    theirs = {name: tensor for name, tensor in gather_named_weights(whole)}
    ours = {name: tensor.clone() for name, tensor in gather_named_weights(model)}
    sampler.sync(iter(ours.items()))
    found["names"] = list(ours) == list(theirs)
    found["different"] = [name for name, tensor in theirs.items() if not torch.equal(ours[name], tensor)]
    buffers = dict(model.named_buffers())
    found["other buffers"] = [name for name, b in whole.named_buffers() if not torch.equal(buffers[name], b)]
    found["share held"] = sum(local_part(p).numel() for p in model.parameters()) / whole.num_parameters()
    found["attention"] = model.config._attn_implementation
    with torch.no_grad():
        expected = whole(input_ids=IDS).logits
        logits = call_with_weights(model, lambda m: m(input_ids=IDS, use_cache=False).logits)
        found["logits differ by"] = (logits - expected).abs().max().item()
        found["engine's differ by"] = (sampler.model(input_ids=IDS).logits - expected).abs().max().item()
    if adapted:
        drawn = dict(iterate_adapter_weights(whole))
        parts = iterate_adapter_weights(model)
        found["other adapters"] = [n for n, p in parts if not torch.equal(gather_tensor(p.detach()), drawn[n])]
        found["trained"] = sorted({n.rpartition(".lora_")[1] for n, p in model.named_parameters() if p.requires_grad})
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with process_group():
        found = {model.name: compare(model) for model in sorted(folder.iterdir()) if model.is_dir()}
        (folder / f"found_{rank()}.json").write_text(json.dumps(found))
    exit_at_once()
