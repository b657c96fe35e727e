"""Steers the strength of negative groups by the policy's entropy, whatever the objective inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lens.objectives.options import between, not_negative
from lens.objectives.wrapper import Wrapper, scale_negative


class EntropyTarget(Wrapper):
    """The advantages of an objective, those of negative groups multiplied by a strength that follows the entropy.

    Every collapse under a penalty showed first in the entropy, which rose many times over. So the strength falls while
    the entropy is above its target, and rises while it is below: after a round, strength <- strength * exp(rate *
    (target - entropy) / target), at most ``max_strength``. The target is ``target`` times the entropy of the first
    round. The entropy is the mean of -log pi over the sampled tokens, averaged over rounds.

    Args:
        objective: called with what it names; returns [Q, G] or [Q, G, T].
        strength: of the first round.
        target: share of the first round's entropy, above 0.
        rate: how fast the strength follows.
        decay: what a round leaves of the average of the entropy, in [0, 1).
        max_strength: the largest strength.

    Raises:
        ValueError: an option is out of its range.
    """

    needs = frozenset({"correct", "valid", "logprobs", "mask"})
    memory = ("strength", "first", "entropy")

    def __init__(
        self,
        objective: Callable[..., Tensor],
        *,
        strength: float = 1.0,
        target: float = 0.5,
        rate: float = 0.1,
        decay: float = 0.9,
        max_strength: float = 16.0,
    ) -> None:
        not_negative(strength=strength, target=target, rate=rate, max_strength=max_strength)
        between(0, 1, decay=decay)
        if target == 0 or decay == 1:
            raise ValueError(f"target={target}, decay={decay}: target above 0, decay below 1")
        super().__init__(objective)
        self.strength, self.max_strength = min(strength, max_strength), max_strength
        self.target, self.rate, self.decay = target, rate, decay
        self.first = self.entropy = None  # of the first round, and averaged over rounds; in nats

    def __call__(
        self, correct: Tensor, *, logprobs: Tensor, mask: Tensor, valid: Tensor | None = None, **inputs: Any
    ) -> Tensor:
        """Return the advantages of a round, float32 [Q, G] or [Q, G, T]; then let the strength follow the entropy.

        Args:
            correct, valid: bool [Q, G].
            logprobs, mask: [Q, G, T], log-probabilities of the sampled tokens, and which tokens are real.
            inputs: the rest of what the objective inside names.
        """
        given = {"correct": correct, "logprobs": logprobs, "mask": mask, "valid": valid, **inputs}
        advantages, negative = self.weigh_inside(given)
        weighed = scale_negative(advantages, negative, self.strength)
        self._follow(-logprobs[mask].double().mean().item())
        return weighed

    def _follow(self, entropy: float) -> None:
        """Take the round's entropy into the average, and move the strength."""
        if self.first is None:
            self.first = self.entropy = entropy
        self.entropy = self.decay * self.entropy + (1 - self.decay) * entropy
        aim = self.target * self.first
        if aim > 0:
            self.strength = min(self.max_strength, self.strength * math.exp(self.rate * (aim - self.entropy) / aim))
