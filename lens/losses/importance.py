"""Computes importance weights of tokens, to correct for a rollout engine that is not quite the policy."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

ImportanceSampling = Literal["none", "token_truncate", "token_mask", "sequence_mask"]


def importance_weights(
    trainer_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, mode: ImportanceSampling, *, cap: float
) -> Tensor:
    """Return the importance weight of each sampled token.

    The ratio is the probability under the policy, divided by that under the engine. The modes have TRL's names:

    * token_truncate: min(ratio, cap) of each token (truncated importance sampling, TIS)
    * token_mask: the ratio of each token; 0 where it is above the cap
    * sequence_mask: the ratio of the whole completion, for each of its tokens; 0 where it is above the cap

    Args:
        trainer_logprobs, sampler_logprobs: [N, T], log-probabilities of the same tokens under the policy and under the
            engine.
        mask: bool [N, T], True on real tokens.
        mode: one of the above. "none" is refused, as there is nothing to weigh.
        cap: a number above 1.

    Returns:
        [N, T]. Entries outside the mask are not to be used.

    Raises:
        ValueError: the mode is unknown.
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
