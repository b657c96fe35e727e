"""Remembers how often each problem was solved, and forgets old rounds. Objectives with a tracked baseline use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lens.objectives.options import between

PRIOR = (0.5, 0.5)  # successes and failures of a problem that no round has had: a rate of 1/2


class BetaTracker:
    """Counts of successes and failures of each problem, a and b of a Beta distribution.

    A round multiplies the counts of the problems it has by ``decay``, then adds its own. So the nth round of a problem
    before its last counts decay^n, and no more than 1 / (1 - decay) rounds count.
    """

    def __init__(self, decay: float) -> None:
        between(0, 1, decay=decay)
        self.decay = decay
        self.counts: dict[str, tuple[float, float]] = {}

    def rates(self, problem_ids: Sequence[str]) -> Tensor:
        """Return a / (a + b) of each problem, float64 [Q, 1]."""
        counts = torch.tensor([self.counts.get(name, PRIOR) for name in problem_ids], dtype=torch.float64).view(-1, 2)
        return counts[:, :1] / counts.sum(dim=1, keepdim=True)

    def update(self, problem_ids: Sequence[str], successes: Tensor, trials: Tensor) -> None:
        """Take in a round: of ``trials`` [Q] of each problem, ``successes`` [Q] succeeded.

        A problem that the round has twice is one with the sum of both. One without a trial keeps its counts.
        """
        of_round: dict[str, tuple[float, float]] = {}
        for name, won, tried in zip(problem_ids, successes.tolist(), trials.tolist(), strict=True):
            before = of_round.get(name, (0.0, 0.0))
            of_round[name] = (before[0] + won, before[1] + tried - won)
        for name, (won, lost) in of_round.items():
            if won + lost > 0:
                a, b = self.counts.get(name, PRIOR)
                self.counts[name] = (self.decay * a + won, self.decay * b + lost)

    def state_dict(self) -> dict:
        return {"counts": {name: list(counts) for name, counts in self.counts.items()}}

    def load_state_dict(self, state: dict) -> None:
        self.counts = {name: (a, b) for name, (a, b) in state["counts"].items()}
