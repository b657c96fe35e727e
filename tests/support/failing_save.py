"""Saves a checkpoint in several processes, one of which cannot write: failing_save.py MODEL FOLDER PROCESS FAULT.

Each process writes how its save ended to FOLDER/ended_RANK.txt, and then saves once more, without the fault.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from lens.distributed.collectives import process_group
from lens.distributed.processes import rank
from lens.errors import RunFailed
from lens.models.loading import load_model
from lens.models.sharding import call_with_weights, shard_model
from lens.runs.checkpoints import OPTIMIZER_FOLDER, save_checkpoint
from tests.support.faults import no_file_above

if __name__ == "__main__":
    model_folder, folder, process, fault = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    with process_group():
        model, tokenizer = load_model(str(model_folder))
        shard_model(model)
        optimizer = torch.optim.AdamW(model.parameters())
        parts = folder / "checkpoints", model, tokenizer, optimizer
        if fault != "model":  # with a file for each process
            call_with_weights(model, lambda m: m(torch.tensor([[1, 2]])).logits.sum()).backward()
            optimizer.step()
        former = save_checkpoint(*parts, {"step": 1}, keep=1)
        assert (former / OPTIMIZER_FOLDER).exists() == (fault != "model")
        blocked = folder / "checkpoints" / "step_000002.unfinished"
        if fault == "folder" and rank() == process:
            blocked.touch()  # stands where the folder goes
        ended = "saved"
        with no_file_above(10_000) if fault != "folder" and rank() == process else nullcontext():
            try:
                save_checkpoint(*parts, {"step": 2}, keep=1)
            except RunFailed as failure:
                ended = str(failure)
        (folder / f"ended_{rank()}.txt").write_text(ended)
        if blocked.is_file():
            blocked.unlink(missing_ok=True)
        save_checkpoint(*parts, {"step": 3}, keep=2)
