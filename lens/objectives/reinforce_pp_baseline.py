"""REINFORCE++ with baseline: centre rewards in their group, then whiten them over all tokens of the round."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.objectives.groups import ROUNDING, all_valid, centre


def reinforce_pp_baseline_advantages(
    correct: Tensor,
    *,
    lengths: Tensor,
    rewards: Tensor | None = None,
    shift_mean: bool = True,
    eps: float = 1e-8,
    valid: Tensor | None = None,
) -> Tensor:
    """Return A_i = (a_i - mu) / sqrt(sigma^2 + eps), where a_i = r_i - mean(r) inside each group.

    mu and sigma^2 are the mean and the sample variance of a over all tokens of the round, so an answer counts once for
    each of its tokens. Long wrong answers make mu negative. Then every answer of a group of one kind, whose a is 0,
    gets the same -mu / sigma > 0. Hu et al., arXiv 2501.03262; numbers as in verl.

    Args:
        correct: bool [Q, G], the verdicts on G answers to each of Q questions.
        lengths: int [Q, G], tokens of each answer.
        rewards: [Q, G], the rewards r. None: 1 for a correct answer, else 0.
        shift_mean: False divides only, so that groups of one kind get 0.
        eps: added to the variance.
        valid: bool [Q, G]. Invalid answers and their tokens count nowhere, and get 0. None: all are valid.

    Returns:
        float32 [Q, G].
    """
    valid = all_valid(correct, valid)
    centred = centre(correct if rewards is None else rewards, valid)  # [Q, G], a
    tokens = lengths * valid  # [Q, G]
    mean = (tokens * centred).sum() / tokens.sum().clamp(min=1)
    shifted = centred - mean
    shifted = torch.where(valid & (shifted.abs() > ROUNDING), shifted, 0.0)
    variance = (tokens * shifted.square()).sum() / (tokens.sum() - 1).clamp(min=1)
    return ((shifted if shift_mean else centred) / (variance + eps).sqrt()).float()
