"""Shares sampling among processes: each samples a part of the prompts, and all get every completion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lens.distributed.collectives import Interruptible, gather_from_each, rank, world_size
from lens.problems.prompts import Prompt
from lens.sampling.rollouts import Rollouts, Sampler


class ParallelSampler:
    """Makes the engines of all processes act as one `Sampler`.

    Args:
        sampler: this process's engine.
        processes_per_engine: neighbouring processes that split the weights of one engine, and so sample the same.
        interruptible: lets SIGTERM interrupt an engine that has a process to itself.
    """

    def __init__(self, sampler: Sampler, processes_per_engine: int = 1, interruptible: Interruptible = nullcontext):
        self.sampler, self.per_engine = sampler, processes_per_engine
        self.interruptible = interruptible if processes_per_engine == 1 else nullcontext
        self.parity_every, self.max_logp_difference = sampler.parity_every, sampler.max_logp_difference
        self.max_mean_logp_difference = sampler.max_mean_logp_difference

    def sample(self, prompts: Sequence[Prompt], num_generations: int, seed: int, **options: Any) -> Rollouts:
        """See `lens.sampling.rollouts.Sampler`. The completions do not depend on the number of engines."""
        engines = world_size() // self.per_engine
        own = prompts[rank() // self.per_engine :: engines]

        def work() -> Rollouts | None:
            return self.sampler.sample(own, num_generations, seed, **options) if own else None

        parts = gather_from_each(work, self.interruptible)[:: self.per_engine]
        return merge_rollouts(prompts, [part for part in parts if part is not None])

    def sync(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Pass the weights on to this process's engine. Every process must call this."""
        self.sampler.sync(named_tensors)

    def close(self) -> None:
        """Free the engine's memory."""
        self.sampler.close()


def merge_rollouts(prompts: Sequence[Prompt], parts: Sequence[Rollouts]) -> Rollouts:
    """Merge parts into the rollouts of all prompts. Part i holds prompts i, i + len(parts), i + 2 len(parts), ..."""
    asked = [place for first in range(len(parts)) for place in range(first, len(prompts), len(parts))]
    return replace(Rollouts.join(parts).take_questions(torch.tensor(asked).argsort().tolist()), prompts=prompts)
