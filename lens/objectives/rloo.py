"""RLOO: compare each reward with the mean of the other rewards of its group."""

from __future__ import annotations

from torch import Tensor

from lens.objectives.groups import all_valid, centre


def rloo_advantages(correct: Tensor, *, rewards: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
    """Return A_i = r_i - mean of the other r_j, which is G / (G - 1) (r_i - mean(r)).

    A baseline that does not know r_i leaves the gradient of the mean reward unbiased. Ahmadian et al., arXiv
    2402.14740; there is no standard deviation.

    Args:
        correct: bool [Q, G], the verdicts on G answers to each of Q questions.
        rewards: [Q, G], the rewards r. None: 1 for a correct answer, else 0.
        valid: bool [Q, G]. Invalid answers do not count in mean and G, and get 0. None: all are valid.

    Returns:
        float32 [Q, G]; 0 for the only valid answer of a group, which has no others.
    """
    valid = all_valid(correct, valid)
    size = valid.sum(dim=1, keepdim=True)  # [Q, 1], G
    centred = centre(correct if rewards is None else rewards, valid)
    return (centred * size / (size - 1).clamp(min=1)).float()
