"""Where a run stands: with the weights, the optimizer and the random states, all that it needs to resume exactly."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch

from lens.seeding import derive_seed
from lens.training.experience import Experience


@dataclass
class TrainState:
    """Where a run stands, in numbers and mini-batches.

    Attributes:
        step: optimizer updates that are done.
        round: rollout rounds that are sampled; it seeds the sampler and is the place in the training problems.
        pending: mini-batches of the last round that wait for their update.
        totals: sums over the run.
        evaluation: metrics of the last evaluation, and evaluated_at its step (-1: none yet).
        best: metric, step and value of the best evaluation after an update, or nothing.
    """

    step: int = 0
    round: int = 0
    pending: list[Experience] = field(default_factory=list)
    totals: dict[str, float] = field(
        default_factory=lambda: {"tokens_generated": 0, "tokens_trained": 0, "updates_skipped": 0}
    )
    evaluation: dict[str, float] = field(default_factory=dict)
    evaluated_at: int = -1
    best: dict[str, Any] = field(default_factory=dict)

    def update_best(self, metric: str) -> bool:
        """Compare the last evaluation with the best one; whether it takes its place.

        Args:
            metric: such as "pass@1": the mean of eval/<set>/pass@1 over the sets.
        """
        values = [v for name, v in self.evaluation.items() if name.count("/") == 2 and name.endswith(f"/{metric}")]
        value = sum(values) / len(values)
        if self.step == 0 or (self.best.get("metric") == metric and self.best["value"] >= value):
            return False
        self.best = {"metric": metric, "step": self.step, "value": value}
        return True

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, which torch loads with weights_only."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "pending": [experience.state() for experience in self.pending]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TrainState:
        """The inverse of `state`; what else the state holds is left out."""
        values = {f.name: state[f.name] for f in fields(cls)}
        return cls(**{**values, "pending": [Experience.from_state(part) for part in state["pending"]]})


def choose_questions(num_problems: int, per_round: int, seed: int, number: int) -> list[int]:
    """The problems of round ``number``: each epoch is a permutation of its own, and its remainder is left out."""
    rounds_per_epoch = num_problems // per_round
    epoch, place = divmod(number, rounds_per_epoch)
    generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
    order = torch.randperm(num_problems, generator=generator).tolist()
    return order[place * per_round : (place + 1) * per_round]
