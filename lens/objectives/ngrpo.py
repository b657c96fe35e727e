"""NGRPO: count a virtual correct answer in each group's mean and standard deviation, so that negative groups teach."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, normalise


def ngrpo_advantages(
    correct: Tensor,
    *,
    rewards: Tensor | None = None,
    max_reward: float = 1.0,
    num_virtual: int = 1,
    eps: float = 1e-6,
    valid: Tensor | None = None,
) -> Tensor:
    """Return A_i = (r_i - m) / (s + eps), with m and s over the group's rewards and num_virtual times max_reward.

    The virtual answers only move m and s. A group of G wrong answers gets -1 / sqrt(G + 1) with the defaults, a group
    of correct ones 0. Nan et al., arXiv 2509.18851, equation 6; s is the sample standard deviation, as in the authors'
    code.

    Args:
        correct: bool [Q, G], the verdicts on G answers to each of Q questions.
        rewards: [Q, G], the rewards r. None: 1 for a correct answer, else 0.
        max_reward: the reward of a virtual answer, the largest there is.
        num_virtual: virtual answers a group, >= 0. 0 is GRPO.
        eps: added to the standard deviation.
        valid: bool [Q, G]. Invalid answers do not count in m and s, and get 0. None: all are valid.

    Returns:
        float32 [Q, G].

    Raises:
        ValueError: num_virtual is below 0.
    """
    if num_virtual < 0:
        raise ValueError(f"num_virtual={num_virtual}: must be at least 0")
    rewards = (correct if rewards is None else rewards).double()
    virtual = rewards.new_full((len(rewards), num_virtual), max_reward)
    valid = torch.cat([all_valid(correct, valid), torch.ones_like(virtual, dtype=torch.bool)], dim=1)
    advantages = normalise(torch.cat([rewards, virtual], dim=1), valid, eps=eps)
    return advantages[:, : correct.shape[1]].float()
