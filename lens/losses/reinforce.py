"""Computes REINFORCE's surrogate: the advantage times the log-probability, with no limit on a round's step."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.losses.surrogate import Surrogate


def reinforce_loss(*, logprobs: Tensor, advantages: Tensor) -> Surrogate:
    """Return -A log pi for each token.

    Its gradient is the one that every other loss has where the policy is still the old one. From a round's second
    update on it treats the answers as if the current policy had sampled them. No token is clipped.

    Args:
        logprobs, advantages: [n], see `lens.losses.surrogate`.
    """
    return Surrogate(-advantages * logprobs, torch.zeros_like(logprobs, dtype=torch.bool))
