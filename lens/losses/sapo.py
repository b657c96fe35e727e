"""Computes SAPO's surrogate: a smooth gate in place of a clip."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.losses.surrogate import Surrogate


def sapo_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> Surrogate:
    """Return -(4 / tau) sigmoid(tau (rho - 1)) A for each token, with tau by the sign of the advantage A.

    rho is the token's ratio. Its gradient is that of -rho A times a gate: with p the sigmoid, the gate 4 p (1 - p) is 1
    at rho = 1 and falls towards 0 on both sides, the faster the larger tau is.
    Source: "Soft Adaptive Policy Optimization" (arXiv 2511.20347).

    No token is clipped.

    Args:
        logprobs, old_logprobs, advantages: [n], see `lens.losses.surrogate`.
        tau_positive, tau_negative: temperatures of the gate for positive and negative advantages, above 0.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [n]
    tau = torch.full_like(ratio, tau_negative).masked_fill(advantages > 0, tau_positive)  # [n]
    losses = -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages  # [n]
    return Surrogate(losses, torch.zeros_like(losses, dtype=torch.bool))
