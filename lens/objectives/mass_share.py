"""Holds the share of negative groups in a round's advantages at a fixed value, whatever the objective inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lens.objectives.options import between, not_negative
from lens.objectives.wrapper import Wrapper, scale_negative


class MassShare(Wrapper):
    """The advantages of an objective, those of negative groups multiplied by one number for the round.

    The mass of an answer is |A_i|; of token-level advantages, the mean of |A_it| over its tokens. With N the mass of a
    round's negative groups and S that of all others, the number is share / (1 - share) * S / N: negative groups then
    hold ``share`` of all mass. S and N are averages over rounds, so that a round with few negative groups keeps less
    mass there. The number is 0 in a round with S = 0, where negative groups would hold everything.

    Args:
        objective: called with what it names; returns [Q, G] or [Q, G, T]. Its own weight of negative groups cancels,
            unless ``max_scale`` binds.
        share: of all mass, in [0, 1).
        decay: what a round leaves of the averages of S and N, in [0, 1). 0 holds the share in each round.
        max_scale: the most that advantages are multiplied by, which binds as negative groups vanish.

    Raises:
        ValueError: share or decay is outside [0, 1), or max_scale is below 0.
    """

    needs = frozenset({"correct", "lengths", "valid"})
    memory = ("others", "negative")

    def __init__(
        self,
        objective: Callable[..., Tensor],
        *,
        share: float = 0.18,
        decay: float = 0.9,
        max_scale: float = 64.0,
    ) -> None:
        between(0, 1, share=share, decay=decay)
        if share == 1 or decay == 1:
            raise ValueError(f"share={share}, decay={decay}: below 1")
        not_negative(max_scale=max_scale)
        super().__init__(objective)
        self.share, self.decay, self.max_scale = share, decay, max_scale
        self.others = self.negative = 0.0  # averages of S and N, but for a factor that their ratio does not have

    def __call__(self, correct: Tensor, *, lengths: Tensor, valid: Tensor | None = None, **inputs: Any) -> Tensor:
        """Return the advantages of a round, float32 [Q, G] or [Q, G, T].

        Args:
            correct, valid: bool [Q, G].
            lengths: [Q, G], numbers of tokens.
            inputs: the rest of what the objective inside names.
        """
        given = {"correct": correct, "lengths": lengths, "valid": valid, **inputs}
        advantages, negative = self.weigh_inside(given)
        return scale_negative(advantages, negative, self._scale(masses(advantages, lengths), negative))

    def _scale(self, mass: Tensor, negative: Tensor) -> float:
        """Take the round's masses [Q, G] into the averages, and return what to multiply negative groups by."""
        in_negative = (mass * negative).sum().item()
        in_others = (mass * ~negative).sum().item()
        self.negative = self.decay * self.negative + (1 - self.decay) * in_negative
        self.others = self.decay * self.others + (1 - self.decay) * in_others
        if in_others == 0 or self.negative == 0:
            return 0.0
        return min(self.max_scale, self.share / (1 - self.share) * self.others / self.negative)


def masses(advantages: Tensor, lengths: Tensor) -> Tensor:
    """Return |A_i|, or the mean of |A_it| over the tokens of an answer, float64 [Q, G]; 0 for NaN."""
    size = advantages.double().abs().nan_to_num(nan=0.0)
    return size if size.dim() == 2 else size.sum(dim=-1) / lengths.clamp(min=1)
