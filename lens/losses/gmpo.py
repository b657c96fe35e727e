"""Computes GMPO's surrogate: the geometric mean of an answer's clipped token ratios."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.losses.surrogate import Surrogate, average_sequences


def gmpo_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    sequence: Tensor,
    sequence_advantages: Tensor,
    log_epsilon_low: float = 0.4,
    log_epsilon_high: float = 0.4,
) -> Surrogate:
    """Return -A exp(mean_t d_t) at every token of an answer, with d_t the clipped logarithm of the token's ratio.

    The clip is one-sided, as PPO's: log rho_t is at most log_epsilon_high where A > 0, and at least -log_epsilon_low
    where A < 0. The geometric mean is taken after the clip, so each token loses its gradient alone.
    Source: "Geometric-Mean Policy Optimization" (arXiv 2507.20673), whose range is (e^-0.4, e^0.4).

    Clipped are the tokens that lose their gradient.

    Args:
        logprobs, old_logprobs, sequence: [n], see `lens.losses.surrogate`.
        sequence_advantages: [S].
        log_epsilon_low, log_epsilon_high: clip range of log rho below and above 0.
    """
    log_ratio = logprobs - old_logprobs  # [n]
    rises = sequence_advantages[sequence] > 0  # [n]
    falls = sequence_advantages[sequence] < 0  # [n]
    kept = torch.where(rises, log_ratio.clamp(max=log_epsilon_high), log_ratio.clamp(min=-log_epsilon_low))  # [n]
    losses = -sequence_advantages * average_sequences(kept, sequence).exp()  # [S]
    clipped = (rises & (log_ratio > log_epsilon_high)) | (falls & (log_ratio < -log_epsilon_low))  # [n]
    return Surrogate(losses[sequence], clipped)
