"""Checks what negative groups say on average. Each check returns errors that must be 0.

The statements are those of lens/objectives/negative_groups.py, given that a group is negative: both sides are divided
by the chance of that, (1-p)^G. Groups are summed over, and gradients come from autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import torch
from torch import Tensor

from lens.objectives.controls import uniform_advantages
from lens.objectives.groups import centre
from lens.objectives.lens import calibrated_rewards
from lens.objectives.negative_groups import NegativeGroups, cosine, entropy_of_wrong, gradient_at, pass_at


def centred(rewards: Tensor) -> Tensor:
    """Return rewards [N, G] minus the mean of their group, in float64."""
    return centre(rewards, torch.ones_like(rewards, dtype=torch.bool))


def lens_update(groups: NegativeGroups) -> Tensor:
    """Return the mean update of LENS with alpha = 1, [O]; its penalties are centred in float64."""
    return groups.update(centred(groups.advantages(calibrated_rewards)))


def covariances(groups: NegativeGroups, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the covariances [O] of a weight [N, G] with the score of its own answer, and with that of another."""
    scores = (torch.eye(len(groups.pi), dtype=groups.pi.dtype) - groups.pi)[groups.answers]  # [N, G, O]
    product_of_means = groups.mean(weights).mean() * groups.mean(scores).mean(dim=0)
    own = groups.mean((weights[:, :, None] * scores).mean(dim=1))
    any_pair = groups.mean(weights.mean(dim=1, keepdim=True) * scores.mean(dim=1))
    other = (groups.size * any_pair - own) / (groups.size - 1)
    return own - product_of_means, other - product_of_means


def gradient_of_pass(groups: NegativeGroups) -> Tensor:
    """Return grad pass@G over the chance of a negative group, [O]."""
    gradient = gradient_at(groups.pi, lambda pi: pass_at(pi, groups.right, groups.size))
    return gradient / groups.pi[~groups.right].sum() ** groups.size


def random_weights(groups: NegativeGroups) -> Tensor:
    """Return a weight for each answer, of either sign, as float64 [N, G]."""
    generator = torch.Generator().manual_seed(len(groups.chance))
    return torch.randn(len(groups.pi), generator=generator, dtype=torch.float64)[groups.answers]


# --- checks ----------------------------------------------------------------------------------------------------------


def uniform_is_pass_at_g(groups: NegativeGroups) -> Tensor:
    """Compare the uniform penalty of alpha = 2 G with its (alpha/G) grad pass@G."""
    penalty = groups.advantages(lambda *group: uniform_advantages(*group, alpha=2.0 * groups.size))
    return groups.update(penalty) - 2 * gradient_of_pass(groups)


def two_parts(groups: NegativeGroups, weights: Tensor) -> Tensor:
    """Compare the penalty -w with mean(w) grad pass@G - G Cov(w, score)."""
    own, _ = covariances(groups, weights)
    parts = groups.mean(weights).mean() * gradient_of_pass(groups) - groups.size * own
    return groups.update(-weights) - parts


def any_weight(groups: NegativeGroups) -> Tensor:
    """Compare a penalty that depends on the answer alone with its two parts."""
    return two_parts(groups, random_weights(groups))


def any_weight_centred(groups: NegativeGroups) -> Tensor:
    """Compare such a penalty, centred, with the one part that is left of it."""
    weights = random_weights(groups)
    own, _ = covariances(groups, weights)
    return groups.update(-centred(weights)) + (groups.size - 1) * own


def log_weight(groups: NegativeGroups) -> Tensor:
    """Compare the centred penalty -log pi with (G-1) times the gradient of the entropy of wrong answers."""
    update = groups.update(-centred(groups.pi.log()[groups.answers]))
    return update - (groups.size - 1) * gradient_at(groups.pi, lambda pi: entropy_of_wrong(pi, groups.right))


def lens_not_centred(groups: NegativeGroups) -> Tensor:
    """Compare the penalties of LENS, which depend on the whole group, with their two parts."""
    return two_parts(groups, -groups.advantages(calibrated_rewards))


def lens(groups: NegativeGroups) -> Tensor:
    """Compare LENS with the covariance of a weight and its own score, less that with another answer's score."""
    own, other = covariances(groups, -groups.advantages(calibrated_rewards))
    return lens_update(groups) + (groups.size - 1) * (own - other)


def lens_shuffled(groups: NegativeGroups) -> Tensor:
    """Return the mean update of LENS over every order of a group's confidences, which must be 0."""
    orders = torch.tensor(list(permutations(range(groups.size))))  # [G!, G]
    confidence = groups.pi[groups.answers][:, orders].flatten(end_dim=1)  # [N * G!, G]
    advantages = centred(calibrated_rewards(torch.zeros_like(confidence, dtype=torch.bool), confidence))
    return groups.update(advantages.unflatten(0, (-1, len(orders))).mean(dim=1))


def lens_leaves_right_logits(groups: NegativeGroups) -> Tensor:
    """Return how far LENS moves the logits of right answers, which must be 0."""
    return lens_update(groups)[groups.right]


def lens_raises_p(groups: NegativeGroups) -> Tensor:
    """Return how far LENS lowers p, to first order."""
    return (-lens_update(groups) @ gradient_of_pass(groups)).clamp(min=0)


def lens_has_a_ceiling(groups: NegativeGroups) -> Tensor:
    """Return how far the cosine of LENS with grad pass@G exceeds sqrt((S - 1/W) / (S + R)).

    W is the number of wrong answers, S the chance that two wrong answers that are drawn are the same, and R that of two
    right ones.
    """
    of_wrong, of_right = (
        (groups.pi[members] / groups.pi[members].sum()).square().sum() for members in (~groups.right, groups.right)
    )
    ceiling = ((of_wrong - 1 / (~groups.right).sum()) / (of_wrong + of_right)).sqrt()
    return (cosine(lens_update(groups), gradient_of_pass(groups)) - ceiling).clamp(min=0)


NEGATIVE_GROUP_CHECKS: dict[str, tuple[str, Callable[[NegativeGroups], Tensor]]] = {
    "uniform": ("(alpha/G) grad pass@G", uniform_is_pass_at_g),
    "any weight w": ("mean(w) grad pass@G - G (1-p)^G Cov(w, score)", any_weight),
    "any weight w, centred": ("-(G-1) (1-p)^G Cov(w, score)", any_weight_centred),
    "log pi, centred": ("(G-1) (1-p)^G grad entropy of wrong answers", log_weight),
    "LENS, not centred": ("mean(w_i) grad pass@G - G (1-p)^G Cov(w_i, score_i)", lens_not_centred),
    "LENS": ("-(G-1) (1-p)^G (Cov(w_i, score_i) - Cov(w_j, score_i))", lens),
    "LENS, shuffled": ("0", lens_shuffled),
    "LENS, logits": ("0 at right answers", lens_leaves_right_logits),
    "LENS, first order": ("does not lower p", lens_raises_p),
    "LENS, ceiling": ("cosine with grad pass@G is at most sqrt((S - 1/W) / (S + R))", lens_has_a_ceiling),
}
