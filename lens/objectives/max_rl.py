"""MaxRL: divide by the mean reward instead of the standard deviation, so that rare successes weigh more."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, centre, group_mean


def max_rl_advantages(
    correct: Tensor, *, rewards: Tensor | None = None, eps: float = 1e-6, valid: Tensor | None = None
) -> Tensor:
    """Return A_i = (r_i - mean(r)) / (mean(r) + eps) inside each group, and 0 where mean(r) <= 0.

    Summed over many groups this is the gradient of log p, cut after G - 1 terms of its series in 1 - p, where p is the
    probability of a correct answer. Tajwar et al., arXiv 2602.02710.

    Args:
        correct: bool [Q, G], the verdicts on G answers to each of Q questions.
        rewards: [Q, G], the rewards r, meant to be >= 0. None: 1 for a correct answer, else 0.
        eps: added to the mean, as in the authors' code.
        valid: bool [Q, G]. Invalid answers do not count in the mean, and get 0. None: all are valid.

    Returns:
        float32 [Q, G]; for rewards >= 0, in [-1, G - 1].
    """
    valid = all_valid(correct, valid)
    rewards = correct if rewards is None else rewards
    mean = group_mean(rewards, valid)  # [Q, 1]
    return torch.where(mean > 0, centre(rewards, valid) / (mean + eps), 0.0).float()
