"""Computes CISPO's surrogate: REINFORCE with a capped importance weight of each token."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.losses.surrogate import Surrogate


def cispo_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    ratio_min: float | None = None,
    ratio_max: float = 5.0,
) -> Surrogate:
    """Return -sg(clip(rho, ratio_min, ratio_max)) A log pi for each token, where sg stops the gradient.

    rho is the token's ratio. Every token keeps a gradient, however far it has moved.
    Source: "MiniMax-M1" (arXiv 2506.13585), equations 4 and 5, which bound rho by 1 - epsilon and 1 + epsilon, and tune
    the upper bound alone. The cap of 5 is that of ScaleRL (arXiv 2510.13786) in TRL.

    Clipped are the tokens whose weight is bounded.

    Args:
        logprobs, old_logprobs, advantages: [n], see `lens.losses.surrogate`.
        ratio_min: the smallest weight, between 0 and 1. None: no floor.
        ratio_max: the largest weight, at least 1.
    """
    ratio = torch.exp(logprobs - old_logprobs).detach()  # [n]
    weight = ratio.clamp(ratio_min, ratio_max)  # [n]
    return Surrogate(-weight * advantages * logprobs, weight != ratio)
