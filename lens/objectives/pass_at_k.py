"""Pass@k training: the reward is that of k answers together, 1 if any of them is correct."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, centre


def pass_at_k_advantages(correct: Tensor, *, k: int = 4, eps: float = 1e-6, valid: Tensor | None = None) -> Tensor:
    """Return the advantages of answers that are rewarded in sets of k, over all sets of k answers of the group.

    A set has reward 1 if any of its answers is correct. An answer's advantage is the mean over the sets it is in of
    (reward - mean) / (std + eps), with mean and population standard deviation over all sets. Chen et al., arXiv
    2508.10751, whose closed form is, with n answers, w of them wrong, and r the verdicts,

        q   = C(w - 1, k - 1) / C(n - 1, k - 1)    a wrong answer's companions in a set are all wrong
        f   = C(w, k) / C(n, k) = q w / n          all answers of a set are wrong
        A_i = (r_i - mean(r)) q / (sqrt(f (1 - f)) + eps)

    So the sets only weigh groups: inside a group the advantages are GRPO's up to a factor. The factor is 0 if no set
    is all wrong.

    Args:
        correct: bool [Q, G], the verdicts on G answers to each of Q questions.
        k: size of a set, in 1..G. 1 is GRPO with the population standard deviation.
        eps: added to the standard deviation.
        valid: bool [Q, G]. Invalid answers are in no set, and get 0. None: all are valid.

    Returns:
        float32 [Q, G]; 0 in groups without a correct answer, or with fewer than k wrong ones.

    Raises:
        ValueError: k is not in 1..G.
    """
    if not 1 <= k <= correct.shape[1]:
        raise ValueError(f"k={k}: must be at least 1 and at most the {correct.shape[1]} answers of a group")
    valid = all_valid(correct, valid)
    size = valid.sum(dim=1, keepdim=True)  # [Q, 1], n
    wrong = (~correct & valid).sum(dim=1, keepdim=True)  # [Q, 1], w
    companions = torch.arange(1, k, device=correct.device)  # [k - 1]
    # With 1 <= w < k one factor is 0. With w = 0 no factor matters, as all verdicts are equal.
    factors = (wrong - companions).double() / (size - companions).clamp(min=1)  # [Q, k - 1]
    q = factors.prod(dim=1, keepdim=True)  # [Q, 1]
    f = q * wrong / size.clamp(min=1)
    return (centre(correct, valid) * q / ((f * (1 - f)).sqrt() + eps)).float()
