"""One of the processes of part=memory: python -m lens.benchmarking.loading_process MODEL TARGET, under torchrun.

It loads its part of the model, saves a checkpoint to TARGET/checkpoints with the others, and writes the highest private
memory that it had above that at the start, in GiB, to TARGET/process_RANK.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from lens.benchmarking.meter import PrivateMemory
from lens.distributed.collectives import barrier, local_part, process_group
from lens.distributed.processes import exit_at_once, rank
from lens.models.loading import load_model
from lens.models.sharding import shard_model
from lens.runs.checkpoints import save_checkpoint

if __name__ == "__main__":
    folder, target = sys.argv[1], Path(sys.argv[2])
    with process_group():
        target.mkdir(exist_ok=True)
        barrier()
        with PrivateMemory() as memory:
            model, tokenizer = load_model(folder)
            shard_model(model)
            for parameter in model.parameters():
                local_part(parameter.detach()).mul_(1)  # as an update would: a weight may be a page of its file
            optimizer = torch.optim.AdamW(model.parameters())
            save_checkpoint(target / "checkpoints", model, tokenizer, optimizer, {"step": 0}, keep=1)
        (target / f"process_{rank()}.json").write_text(json.dumps(memory.above))
    exit_at_once()
