"""RL-ZVP (arXiv 2509.21880, eq. 5): groups of one verdict teach too, each token by the policy's entropy there."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, group_kinds, normalise
from lens.objectives.options import not_negative


def rl_zvp_advantages(
    correct: Tensor,
    *,
    entropies: Tensor,
    mask: Tensor,
    alpha: float = 0.1,
    eps: float = 1e-6,
    rewards: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return token-level advantages: -alpha (max_k H_ik - H_it), alpha H_it, or GRPO's.

    The first is of negative groups, with the maximum over the tokens of that answer. The second is of positive groups.
    In mixed groups each token of an answer has the answer's advantage under GRPO.

    Args:
        correct, valid: bool [Q, G]. Invalid answers get 0.
        entropies: [Q, G, T] in nats, H_it: the exact entropy of the policy before token t, at rollout.
        mask: bool [Q, G, T], real tokens; the others get 0.
        alpha: weight of groups of one verdict.
        eps: added to the standard deviation in mixed groups.
        rewards: [Q, G], what mixed groups compare; None: the verdicts.

    Returns:
        float32 [Q, G, T].

    Raises:
        ValueError: alpha is below 0.
    """
    not_negative(alpha=alpha)
    valid = all_valid(correct, valid)
    kinds = group_kinds(correct, valid)
    entropies = entropies.double().where(mask, 0.0)  # [Q, G, T]
    wrong = -alpha * (entropies.amax(dim=-1, keepdim=True) - entropies)  # an entropy is 0 or more
    of_grpo = normalise(correct if rewards is None else rewards, valid, eps=eps)  # [Q, G]
    right_or_mixed = torch.where(kinds.positive.unsqueeze(-1), alpha * entropies, of_grpo.unsqueeze(-1))
    advantages = torch.where(kinds.negative.unsqueeze(-1), wrong, right_or_mixed)
    return advantages.where(mask & valid.unsqueeze(-1), 0.0).float()
