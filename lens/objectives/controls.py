"""Controls: negative groups teach, but not by confidence. Compared with them, LENS shows what confidence adds."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, group_kinds
from lens.objectives.grpo import grpo_advantages
from lens.objectives.lens import lens_advantages


def uniform_advantages(
    correct: Tensor,
    confidence: Tensor | None = None,
    *,
    rewards: Tensor | None = None,
    alpha: float = 0.25,
    eps: float = 1e-6,
    lengths: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return GRPO's advantages in mixed groups, and -alpha/G for every answer of a negative group.

    The penalty is not centred, as it would vanish. It is the constant negative reward of REINFORCE variants, which the
    paper's appendix C derives as the special case rho = pi. Its expectation is (alpha/G) grad pass@G, for answers of
    one length and before clipping (lens/objectives/negative_groups.py).

    Args:
        correct, valid: bool [Q, G], as in `lens_advantages`.
        rewards: [Q, G], finite numbers that mixed groups compare in place of the verdicts; None: 1 and 0.
        confidence, lengths: not used.
        alpha: weight of negative groups.
        eps: added to the standard deviation in mixed groups.

    Returns:
        float32 [Q, G].
    """
    valid = all_valid(correct, valid)
    penalty = -alpha / valid.sum(dim=1, keepdim=True).clamp(min=1) * valid  # [Q, G]
    elsewhere = grpo_advantages(correct, rewards=rewards, eps=eps, valid=valid)
    return torch.where(group_kinds(correct, valid).negative, penalty, elsewhere)


def shuffled_advantages(
    correct: Tensor,
    confidence: Tensor,
    *,
    rewards: Tensor | None = None,
    alpha: float = 0.25,
    eps: float = 1e-6,
    lengths: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return the advantages of LENS after shuffling the confidences among each group's wrong answers.

    The penalties of a group keep their sizes but fall on answers at random. What LENS gains over this comes from
    knowing which answer had which confidence. The random numbers come from torch's global generator.

    Args:
        correct, confidence, rewards, lengths, valid, alpha, eps: as in `lens_advantages`.

    Returns:
        float32 [Q, G].
    """
    wrong = ~correct & all_valid(correct, valid)
    # Random keys are in [0, 1). With 2 added to those of all other answers, a sort starts with the wrong ones.
    others_last = torch.where(wrong, 0.0, 2.0)
    source = (torch.rand(correct.shape, device=correct.device) + others_last).argsort(dim=1)
    target = others_last.argsort(dim=1, stable=True)
    shuffled = torch.empty_like(confidence).scatter_(1, target, confidence.gather(1, source))
    confidence = torch.where(wrong, shuffled, confidence)
    options = {"rewards": rewards, "alpha": alpha, "eps": eps, "lengths": lengths, "valid": valid}
    return lens_advantages(correct, confidence, **options)
