"""The gradient that an objective's advantages give in expectation, for a policy with a single parameter."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def expected_gradient(objective: Callable[[Tensor], Tensor], p: float, size: int) -> float:
    """Return E[(1/G) sum_i A_i d log pi(o_i) / dp] over all groups of a policy that is right with probability p.

    The score of a right answer is 1/p, of a wrong one -1/(1 - p). A group's number of right answers is binomial, and
    their order makes no difference.
    """
    right_first = torch.ones(size + 1, size, dtype=torch.bool).tril(-1)  # row c has c right answers
    scores = torch.where(right_first, 1 / p, -1 / (1 - p)).double()
    gradients = (objective(right_first).double() * scores).mean(dim=1).tolist()
    return sum(math.comb(size, c) * p**c * (1 - p) ** (size - c) * g for c, g in enumerate(gradients))
