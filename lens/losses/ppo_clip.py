"""The clipped surrogate and the penalty towards a reference model, token by token."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """-min(rho A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A) for each token (paper, section 1).

    Args:
        logprobs: [n], log-probabilities of the sampled tokens under the current policy.
        old_logprobs: [n], under the policy that sampled them.
        advantages: [n], the advantage of each token's completion.
        epsilon_low, epsilon_high: clip range below and above 1.
        dual_clip: c > 1 bounds the loss of a negative advantage by -c A, however far rho runs; None: no bound.

    Returns:
        [n], the loss of each token.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [n]
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)  # [n]
    loss = torch.maximum(-ratio * advantages, -clipped * advantages)  # [n]
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)  # [n]


def kl_to_reference(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """The k3 estimate of KL(policy || reference) for each token: exp(d) - d - 1 with d = reference - policy.

    Source: J. Schulman, "Approximating KL divergence" (2020); TRL and verl use the same.
    """
    difference = reference_logprobs - logprobs
    return difference.exp() - difference - 1
