"""The loss: a clipped surrogate that never sees which objective made the advantages."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

LossAggMode = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
ImportanceSampling = Literal["none", "token_truncate", "token_mask", "sequence_mask"]


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


def importance_weights(
    trainer_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, mode: ImportanceSampling, *, cap: float
) -> Tensor:
    """What each sampled token weighs because the engine that drew it is not quite the policy that learns from it.

    The ratio is policy / engine, of a token or, over the tokens of a completion, of all of it. TRL's names and rules:

    * token_truncate: min(ratio, cap) of each token (truncated importance sampling, TIS)
    * token_mask: the ratio of each token, 0 where it is above the cap
    * sequence_mask: the ratio of the completion on all its tokens, 0 where it is above the cap

    Args:
        trainer_logprobs, sampler_logprobs: [N, T], of the same tokens under the policy and under the engine.
        mask: bool [N, T], the real tokens.
        mode: which rule; "none" is refused, as there is nothing to weigh.
        cap: C > 1.

    Returns:
        [N, T], 1 beyond the mask.

    Raises:
        ValueError: an unknown mode.
    """
    difference = (trainer_logprobs - sampler_logprobs).masked_fill(~mask, 0)  # [N, T]
    if mode == "sequence_mask":
        difference = difference.sum(dim=1, keepdim=True).expand_as(difference)  # [N, T]
    ratio = difference.exp()
    if mode == "token_truncate":
        return ratio.clamp(max=cap)
    if mode in ("token_mask", "sequence_mask"):
        return ratio.masked_fill(ratio > cap, 0)
    raise ValueError(f"mode={mode!r}: one of token_truncate, token_mask, sequence_mask")


def token_weights(lengths: Tensor, mode: LossAggMode, *, max_completion_length: int) -> Tensor:
    """The weight that each token of a completion carries in the loss, so that the loss is a plain weighted sum.

    The denominator is that of the whole optimizer batch and is computed once: micro-batches, padding and the number
    of processes cannot change it. verl's names:

    * token-mean: 1 / (tokens of the batch)
    * seq-mean-token-sum: 1 / (completions)
    * seq-mean-token-mean: 1 / (completions * tokens of this completion), the paper's
    * seq-mean-token-sum-norm: 1 / (completions * max_completion_length)

    Args:
        lengths: [N], tokens of every completion of the batch that may teach; 0 for one that may not.
        mode: one of the above.
        max_completion_length: the constant of seq-mean-token-sum-norm.

    Returns:
        float64 [N]; 0 where the length is 0.

    Raises:
        ValueError: an unknown mode.
    """
    lengths = lengths.double()
    counted = lengths > 0
    completions = counted.sum().clamp(min=1).double()
    denominators = {
        "token-mean": lengths.sum().clamp(min=1),
        "seq-mean-token-sum": completions,
        "seq-mean-token-mean": completions * lengths.clamp(min=1),
        "seq-mean-token-sum-norm": completions * max_completion_length,
    }
    if mode not in denominators:
        raise ValueError(f"loss_agg_mode={mode!r}: one of {', '.join(denominators)}")
    return torch.where(counted, 1.0 / denominators[mode], 0.0)
