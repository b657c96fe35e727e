"""One of the processes of a TRL run whose samples are the same however many processes make them; torchrun starts it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from tests.support.trl_runs import GENERATIONS, Recording, make_trainer, verdict

ANSWERS = 12  # of three groups; the second lies in both of two processes


def sample(prompts: list[str], trainer: Recording) -> dict[str, list]:
    """Answers of one to four tokens that depend on their places alone: a negative group, then two mixed ones."""
    first = trainer.accelerator.process_index * len(prompts)
    ids = [[5 + (9 * n + 5 * t) % 23 for t in range(1 + n % 4)] for n in range(first, first + len(prompts))]
    return {"prompt_ids": trainer._tokenizer(prompts)["input_ids"], "completion_ids": ids, "logprobs": None}


def sample_by_trl(prompts: list[str], trainer: Recording) -> dict[str, list | None]:
    """Answers of TRL's own sampling, which the second process does twice."""
    prompt_ids = trainer._tokenizer(prompts)["input_ids"]
    for _ in range(1 + trainer.accelerator.process_index):
        ids, _ = trainer._generate_single_turn(prompt_ids, None, {}, GENERATIONS)
    return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None}


# The names of runs that sample for themselves, under LENS, and the function that does it; None: TRL does.
SAMPLING = {"sampled": None, "twice-sampled": sample_by_trl}


def main(model: Path, output: Path, names: list[str]) -> None:
    """Make an update under each objective or way to sample, and save advantages, weights and metrics by process."""
    for name in names:
        config = {"num_generations": GENERATIONS, "shuffle_dataset": False}
        config["per_device_train_batch_size"] = ANSWERS // int(os.environ.get("WORLD_SIZE", 1))
        if "WORLD_SIZE" in os.environ:
            config["ddp_backend"] = "gloo"
        trainer = make_trainer(
            model,
            output / name,
            config=config,
            rollout_func=SAMPLING.get(name, sample),
            objective="lens" if name in SAMPLING else name,
        )
        trainer.train()
        (batch,) = trainer.batches
        inside = trainer.accelerator.unwrap_model(trainer.model)
        weights = torch.cat([parameter.detach().flatten() for parameter in inside.parameters()])
        metrics = [row for row in trainer.state.log_history if "groups/frac_negative" in row]
        of_groups = {name: value for name, value in metrics[0].items() if name.startswith("groups/")}
        left = batch.get("tool_mask", batch["completion_mask"]).sum(dim=1)
        kept = {"advantages": batch["advantages"], "weights": weights, "metrics": of_groups, "kept": left}
        kept |= {"num_items": batch["num_items_in_batch"]}
        kept |= {"passes": trainer.passes, "correct": verdict(batch["ids"])}
        kept |= {"confidence": [row.mean().exp().item() for row in batch["plain"]]}
        torch.save(kept, output / f"{name}-{trainer.accelerator.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
