"""Computes the weight of each token in the loss, so that every loss_agg_mode is a plain weighted sum."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

LossAggMode = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


def token_weights(lengths: Tensor, mode: LossAggMode, *, max_completion_length: int) -> Tensor:
    """Return the weight that each token of a completion carries in the loss.

    The loss is then a plain weighted sum. The denominator belongs to the whole optimizer batch and is computed once, so
    micro-batches, padding and the number of processes cannot change it. The modes have verl's names:

    * token-mean: 1 / (tokens of the batch)
    * seq-mean-token-sum: 1 / (completions)
    * seq-mean-token-mean: 1 / (completions * tokens of this completion), the paper's
    * seq-mean-token-sum-norm: 1 / (completions * max_completion_length)

    Args:
        lengths: [N], tokens of each completion of the batch; 0 for a completion that may not teach.
        mode: one of the above.
        max_completion_length: the constant of seq-mean-token-sum-norm.

    Returns:
        float64 [N]; 0 where the length is 0.

    Raises:
        ValueError: the mode is unknown.
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
