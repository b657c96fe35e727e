"""Computes PPO's clipped surrogate, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.losses.surrogate import Surrogate, clip_ratio


def ppo_clip_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    dual_clip: float | None = None,
) -> Surrogate:
    """Return -min(rho A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A) for each token.

    rho is the probability of the token under the current policy, divided by that under the old one. The paper's GRPO
    baseline and LENS share this loss, with both epsilons 0.2.

    Clipped are the tokens that the epsilons take the gradient from. Those that dual_clip takes it from do not count.

    Args:
        logprobs, old_logprobs, advantages: [n], see `lens.losses.surrogate`.
        epsilon_low, epsilon_high: clip range below and above 1.
        dual_clip: c > 1 bounds the loss of a token with a negative advantage by -c A, however large rho is. None: no
            bound.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [n]
    losses, clipped = clip_ratio(ratio, advantages, epsilon_low=epsilon_low, epsilon_high=epsilon_high)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)  # [n]
    return Surrogate(losses, clipped)


def clipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, **options: float | None) -> Tensor:
    """Return the losses of `ppo_clip_loss` alone, [n]; the options are its own."""
    return ppo_clip_loss(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, **options).losses
