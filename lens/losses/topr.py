"""Computes TOPR's surrogate: REINFORCE in which a wrong answer that became improbable loses its weight."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.losses.surrogate import Surrogate, sum_sequences


def topr_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    sequence: Tensor,
    sequence_advantages: Tensor,
    ratio_max: float = 1.0,
) -> Surrogate:
    """Return -w A log pi for each token, with one weight w for each answer.

    w is 1 where A >= 0, and the answer's ratio pi(o) / pi_old(o), at most ratio_max, where A < 0. The gradient does not
    flow through w. The ratio is the product over all tokens, without the root of GSPO.
    Source: "Tapered Off-Policy REINFORCE" (arXiv 2503.14286): positive answers are not corrected, the weight of
    negative ones is truncated to [0, 1].

    Clipped are the tokens of answers whose weight is bounded. Where the policy is still the old one, rounding decides
    which side of 1 a ratio is on.

    Args:
        logprobs, old_logprobs, sequence: [n], see `lens.losses.surrogate`.
        sequence_advantages: [S].
        ratio_max: the largest weight of an answer with a negative advantage, at least 1.
    """
    ratio = sum_sequences((logprobs - old_logprobs).detach(), sequence).exp()  # [S]
    negative = sequence_advantages < 0  # [S]
    weight = torch.where(negative, ratio.clamp(max=ratio_max), 1.0)  # [S]
    clipped = negative & (ratio > ratio_max)  # [S]
    return Surrogate(-(weight * sequence_advantages)[sequence] * logprobs, clipped[sequence])
