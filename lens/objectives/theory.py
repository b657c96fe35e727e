"""The theory behind LENS: the likelihood of a reward model, as a policy gradient (paper, eq. 8-13, appendix C).

Read the policy pi as a reward model: the chance that answer o to question q is right is p(q, o) = pi(o|q) / (D(q) rho).
The difficulty D is high where few answers are correct, and 1 where a single one is. The preference rho (appendix C)
says which correct answers the data holds; rho = 1 is the plain framework. The gradient of the log-likelihood then
multiplies grad log pi of a wrong answer by -z / (1 - z), with z = pi / (D rho). Three choices of rho give known forms:

* rho = 1: the confidence is the probability of the whole answer.
* rho = pi: every wrong answer weighs 1 / (D - 1), the constant negative reward of REINFORCE variants.
* rho = gamma^|o|: a wrong answer weighs 1 / (D (gamma / pibar)^|o| - 1), with pibar = pi^(1/|o|). For D = 1 and pibar
  near gamma that is about (1/|o|) pibar / (gamma - pibar). It motivates the length-normalised LENS of
  lens/objectives/lens.py.

Every function here is exact, and training runs none of them. Tests compare them with autograd on answer spaces small
enough to sum over. What training uses of rho is in lens/objectives/preference.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def w(z: Tensor | float) -> Tensor:
    """Return w(z) = (1/z) log(1/(1-z)) - 1 for 0 <= z < 1 (eq. 11-13).

    w is the penalty of a wrong answer whose probability is z * D(q). w(0) = 0, and w grows without bound as z -> 1.
    Near 0 the series z/2 + z^2/3 + z^3/4 + ... is summed instead.

    Args:
        z: number or floating tensor of any shape, pi(o|q) / D(q).

    Raises:
        ValueError: a value is outside [0, 1).
    """
    z = torch.as_tensor(z)
    if not ((z >= 0) & (z < 1)).all():
        raise ValueError(f"w(z) is defined for 0 <= z < 1, not {z[~((z >= 0) & (z < 1))][0].item()}")
    small = z < 1e-2
    series = sum(z**n / (n + 1) for n in range(1, 9))
    safe = torch.where(small, 0.5, z)
    return torch.where(small, series, -torch.log1p(-safe) / safe - 1)


def log_likelihood(pi: Tensor, reward: Tensor, difficulty: Tensor | float, rho: Tensor | float = 1.0) -> Tensor:
    """Return each answer's part of -L: r log pi + (1 - r) log(1 - pi / (D rho)) (eq. 8).

    All tensors have one shape; ``reward`` is in [0, 1]. ``rho`` must carry no gradient.
    """
    z = torch.where(reward < 1, pi / (difficulty * rho), 0.0)  # where r = 1, z may be 1 or more
    return reward * pi.log() + (1 - reward) * torch.log1p(-z)


def multiplier(pi: Tensor, reward: Tensor, difficulty: Tensor | float, rho: Tensor | float = 1.0) -> Tensor:
    """Return the factor of grad log pi of each answer in -grad L: r - (1 - r) pi / (D rho - pi) (theorem 1, eq. 9)."""
    z = torch.where(reward < 1, pi / (difficulty * rho), 0.0)
    return reward - (1 - reward) * z / (1 - z)


def j_mle(pi: Tensor, reward: Tensor, difficulty: Tensor | float, rho: Tensor | float = 1.0) -> Tensor:
    """Return J_MLE = E_pi[r] - E_pi[w(pi / (D rho)) (1 - r)] (eq. 11-13).

    On-policy, its gradient equals -grad L (theorem 2).

    Args:
        pi: [..., O], the probability of each of the O answers; they sum to 1.
        reward: [..., O], the chance that each is judged right, in [0, 1].
        difficulty, rho: D and the preference, of shapes that broadcast. z = pi / (D rho) < 1 wherever reward < 1.

    Returns:
        [...].
    """
    z = torch.where(reward < 1, pi / (difficulty * rho), 0.0)
    return (pi * (reward - w(z) * (1 - reward))).sum(dim=-1)
