"""Computes GSPO's surrogate: PPO's clip on the ratio of a whole answer."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.losses.surrogate import Surrogate, average_sequences, clip_ratio


def gspo_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    sequence: Tensor,
    epsilon_low: float = 3e-4,
    epsilon_high: float = 4e-4,
) -> Surrogate:
    """Return -min(s A, clip(s, 1 - epsilon_low, 1 + epsilon_high) A) for each token.

    s is the geometric mean of the answer's token ratios, exp(mean_t log rho_t). The value of s is that of the answer,
    but its gradient flows through the token's own log-probability alone: s_t = sg(s) pi_t / sg(pi_t), where sg stops
    the gradient. With one advantage for the whole answer, the sum over its tokens has the value, the clipped tokens
    and the gradient of the answer's own loss. Token-level advantages work as well.
    Source: "Group Sequence Policy Optimization" (arXiv 2507.18071), equations 5 and 7, and GSPO-token.

    Clipped are the tokens that lose their gradient. Those of one answer do so together, but for signs of token-level
    advantages.

    Args:
        logprobs, old_logprobs, advantages, sequence: [n], see `lens.losses.surrogate`.
        epsilon_low, epsilon_high: clip range of s below and above 1. A mean over many tokens stays near 1, so the range
            is some hundred times narrower than PPO's.
    """
    of_answer = average_sequences((logprobs - old_logprobs).detach(), sequence)  # [S], log s
    own = logprobs - logprobs.detach()  # [n], 0 with a gradient
    ratio = torch.exp(of_answer[sequence] + own)  # [n]
    return clip_ratio(ratio, advantages, epsilon_low=epsilon_low, epsilon_high=epsilon_high)
