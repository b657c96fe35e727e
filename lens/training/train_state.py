"""Holds the position of a run. With weights, optimizer and random states, it is all a run needs to resume exactly."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch

from lens.seeding import derive_seed
from lens.training.experience import Experience


@dataclass
class TrainState:
    """The position of a run: its counters, and the mini-batches that wait.

    Attributes:
        step: optimizer updates done.
        round: draws sampled: rollout rounds, and more where groups are filtered. It seeds the sampler and decides which
            problems come next.
        pending: mini-batches of the last round that wait for their update.
        totals: sums over the run.
        evaluation: metrics of the last evaluation.
        evaluated_at: step of the last evaluation; -1: none yet.
        best: metric, step and value of the best evaluation after an update; empty: none yet.
    """

    step: int = 0
    round: int = 0
    pending: list[Experience] = field(default_factory=list)
    totals: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("tokens_generated", "tokens_trained", "updates_skipped", "groups_dropped"), 0
        )
    )
    evaluation: dict[str, float] = field(default_factory=dict)
    evaluated_at: int = -1
    best: dict[str, Any] = field(default_factory=dict)

    def update_best(self, metric: str) -> bool:
        """Make the last evaluation the best one if it is better, and return whether it was.

        The evaluation before the first update never counts.

        Args:
            metric: such as "pass@1", which means the mean of eval/<set>/pass@1 over the sets.
        """
        values = [v for name, v in self.evaluation.items() if name.count("/") == 2 and name.endswith(f"/{metric}")]
        value = sum(values) / len(values)
        if self.step == 0 or (self.best.get("metric") == metric and self.best["value"] >= value):
            return False
        self.best = {"metric": metric, "step": self.step, "value": value}
        return True

    def state(self) -> dict[str, Any]:
        """Return plain values and tensors, so that torch can load them with weights_only."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "pending": [experience.state() for experience in self.pending]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TrainState:
        """Make a state from what `state` returned. Other keys are ignored."""
        values = {f.name: state[f.name] for f in fields(cls)}
        return cls(**{**values, "pending": [Experience.from_state(part) for part in state["pending"]]})


def choose_questions(num_problems: int, per_round: int, seed: int, number: int) -> list[int]:
    """Return the indices of the problems of round ``number``.

    Each epoch has a permutation of its own. The problems left over at its end, too few for a round, are skipped.
    """
    rounds_per_epoch = num_problems // per_round
    epoch, place = divmod(number, rounds_per_epoch)
    generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
    order = torch.randperm(num_problems, generator=generator).tolist()
    return order[place * per_round : (place + 1) * per_round]
