"""Corrects for a rollout engine that is not quite the policy: importance weights of tokens."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

ImportanceSampling = Literal["none", "token_truncate", "token_mask", "sequence_mask"]


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
