"""GRPO, the paper's baseline: compare each reward with the mean of its group."""

from __future__ import annotations

from torch import Tensor

from lens.objectives.groups import all_valid, normalise


def grpo_advantages(
    correct: Tensor,
    confidence: Tensor | None = None,
    *,
    rewards: Tensor | None = None,
    eps: float = 1e-6,
    scale_by_std: bool = True,
    lengths: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return A_i = (r_i - mean(r)) / (std(r) + eps) inside each group. A group of equal rewards gets exactly 0.

    Args:
        correct: bool [Q, G], the verdicts on G answers to each of Q questions.
        confidence, lengths: not used.
        rewards: [Q, G], the rewards r. None: 1 for a correct answer, else 0.
        eps: added to the sample standard deviation, as in TRL and verl.
        scale_by_std: False leaves out the division.
        valid: bool [Q, G]. Invalid answers do not count in mean and std, and get 0. None: all are valid.

    Returns:
        float32 [Q, G].
    """
    valid = all_valid(correct, valid)
    rewards = correct if rewards is None else rewards
    return normalise(rewards, valid, eps=eps, scale_by_std=scale_by_std).float()
