"""Weighted REINFORCE: raise every correct answer by one constant, lower every wrong one by another; no baseline."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lens.objectives.groups import all_valid


def w_reinforce_advantages(
    correct: Tensor,
    *,
    right_weight: float | None = 0.1,
    wrong_weight: float | None = 1.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Return A_i = right_weight for a correct answer, and -wrong_weight for a wrong one.

    A weight of None takes its answers out of the batch: they get NaN, and the loss's denominator does not count them. A
    weight of 0 leaves them in it. Zhu et al., arXiv 2506.01347: W-REINFORCE has the weights 0.1 and 1, PSR 1 and None,
    NSR None and 1.

    Args:
        correct: bool [Q, G], the verdicts on G answers to each of Q questions.
        right_weight: weight of correct answers, >= 0 (the paper's lambda), or None.
        wrong_weight: weight of wrong answers, >= 0, or None.
        valid: bool [Q, G]. Invalid answers get 0. None: all are valid.

    Returns:
        float32 [Q, G], with NaN for what is not in the batch.

    Raises:
        ValueError: a weight is below 0, or both are None.
    """
    weights = [weight for weight in (right_weight, wrong_weight) if weight is not None]
    if not weights or min(weights) < 0:
        raise ValueError(f"{right_weight=}, {wrong_weight=}: must be at least 0 or null, and not both null")
    right = math.nan if right_weight is None else right_weight
    wrong = math.nan if wrong_weight is None else -wrong_weight
    return torch.where(all_valid(correct, valid), torch.where(correct, right, wrong), 0.0).float()
