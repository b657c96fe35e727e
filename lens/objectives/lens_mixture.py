"""LENS's shape without its centring: every answer of a negative group is pushed down, the confident ones further.

It separates three things that LENS does at once in negative groups: the shape of the penalty over a group's answers,
the centring, and the mass, which is the sum of |A|.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, centre, group_kinds, normalise
from lens.objectives.options import between, not_negative, one_of


def lens_mixture_advantages(
    correct: Tensor,
    confidence: Tensor,
    *,
    alpha: float = 0.25,
    lam: float = 1.0,
    temper: float = 1.0,
    centred: bool = False,
    mass: Literal["mean", "absolute"] = "mean",
    eps: float = 1e-6,
    rewards: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return GRPO's advantages, and in negative groups A_i = -(alpha/G) [(1 - lam) + lam w_i / mean_j w_j].

    w_i = (z_i / (2 - z_i))^temper, where z_i is the confidence over the group's largest: the penalty of LENS in
    negative groups. The mean of A_i is -alpha/G, whatever lam and temper are. lam = 0 is `uniform_advantages`.

    Args:
        correct, valid: bool [Q, G]. Invalid answers do not count in max, mean and G, and get 0.
        confidence: [Q, G] in (0, 1], geometric-mean token probability.
        alpha: weight of negative groups.
        lam: share of the penalty that depends on the confidence, in [0, 1].
        temper: above 1 the penalty falls on the most confident answers alone; 0 is lam = 0.
        centred: True subtracts the mean of each negative group, as LENS does. With lam = 0 that leaves 0.
        mass: what alpha/G is. "mean": the mean of -A_i before centring, so that centring takes mass away.
            "absolute": the mean of |A_i| over all negative groups of the round, after it. One factor for the whole
            round brings it there, so that groups keep their proportions; where all is 0 it stays 0.
        eps: added to the standard deviation in mixed groups.
        rewards: [Q, G], what groups that are not negative compare; None: the verdicts.

    Returns:
        float32 [Q, G].

    Raises:
        ValueError: alpha or temper is below 0, lam is outside [0, 1], or the mass has another name.
    """
    not_negative(alpha=alpha, temper=temper)
    between(0, 1, lam=lam)
    one_of(("mean", "absolute"), mass=mass)
    valid = all_valid(correct, valid)
    negative = group_kinds(correct, valid).negative  # [Q, 1]
    size = valid.sum(dim=1, keepdim=True).clamp(min=1)  # [Q, 1], G
    w = confidence_weights(confidence, valid) ** temper * valid  # [Q, G]
    mean = w.sum(dim=1, keepdim=True).clamp(min=1) / size  # [Q, 1]; the largest w of a group is 1
    shape = (1 - lam) + lam * w / mean  # [Q, G], its mean is 1
    penalty = -alpha / size.double() * shape * (valid & negative)
    if centred:
        penalty = centre(penalty, valid)
    if mass == "absolute":
        penalty = penalty * (alpha * negative.sum() / penalty.abs().sum()).nan_to_num(nan=0.0, posinf=0.0)
    of_grpo = normalise(correct if rewards is None else rewards, valid, eps=eps)
    return torch.where(negative, penalty, of_grpo).float()


def confidence_weights(confidence: Tensor, valid: Tensor) -> Tensor:
    """Return z / (2 - z), z the confidence over the largest of its group's valid answers, float64 [Q, G]."""
    confidence = confidence.double().clamp(min=torch.finfo(torch.float64).tiny)  # it may have underflowed to 0
    highest = confidence.where(valid, 0.0).amax(dim=1, keepdim=True)
    z = (confidence / highest).where(valid, 1.0)
    return z / (2 - z)
