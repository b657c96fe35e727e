"""Computes PPO's clipped surrogate and the KL penalty towards a reference model, token by token."""

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
    """Return -min(rho A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A) for each token.

    rho is the probability of the token under the current policy, divided by that under the old one. The paper's GRPO
    baseline and LENS share this loss, with both epsilons 0.2.

    Args:
        logprobs: [n], log-probabilities of the sampled tokens under the current policy.
        old_logprobs: [n], under the policy that sampled them.
        advantages: [n], the advantage of each token's completion.
        epsilon_low, epsilon_high: clip range below and above 1.
        dual_clip: c > 1 bounds the loss of a token with a negative advantage by -c A, however large rho is. None: no
            bound.

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
    """Return the k3 estimate of KL(policy || reference) for each token, [n] -> [n].

    It is exp(d) - d - 1, with d the reference's log-probability minus the policy's.
    Source: J. Schulman, "Approximating KL divergence" (2020); TRL and verl use the same.
    """
    difference = reference_logprobs - logprobs
    return difference.exp() - difference - 1
