"""Where LENS comes from: the likelihood of a reward model, and the policy gradient that it is (paper, section 2).

A policy pi is read as a reward model p(q, o) = pi(o|q) / (D(q) rho(o)), where the difficulty D says how rare right
answers are and the preference rho (appendix C) which of them the data holds; rho = 1 is the plain framework. A wrong
answer then weighs on grad log pi with -z / (1 - z), z = pi / (D rho), and three choices of rho are known algorithms:

* rho = 1: the confidence is the probability of the whole answer.
* rho = pi: every wrong answer weighs 1 / (D - 1), the constant negative reward of REINFORCE variants.
* rho = gamma^|o|: 1 / (D (gamma / pibar)^|o| - 1) with pibar = pi^(1/|o|), about (1/|o|) pibar / (gamma - pibar), from
  which the length-normalised LENS of lens.py is read off.

Every function here is exact, and tests hold it against autograd on answer spaces that can be summed over.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Preference = float | Literal["policy"] | None


def w(z: Tensor | float) -> Tensor:
    """w(z) = (1/z) log(1/(1-z)) - 1 for 0 <= z < 1: the penalty of a wrong answer of probability z * D(q) (eq. 12).

    w(0) = 0 and w grows without bound as z -> 1; near 0 the series z/2 + z^2/3 + z^3/4 + ... takes over.

    Args:
        z: number or floating tensor of any shape, pi(o|q) / D(q).

    Raises:
        ValueError: a value outside [0, 1).
    """
    z = torch.as_tensor(z)
    if not ((z >= 0) & (z < 1)).all():
        raise ValueError(f"w(z) is defined for 0 <= z < 1, not {z[~((z >= 0) & (z < 1))][0].item()}")
    small = z < 1e-2
    series = sum(z**n / (n + 1) for n in range(1, 9))
    safe = torch.where(small, 0.5, z)
    return torch.where(small, series, -torch.log1p(-safe) / safe - 1)


def log_likelihood(pi: Tensor, reward: Tensor, difficulty: Tensor | float, rho: Tensor | float = 1.0) -> Tensor:
    """-L of each answer (eq. 8): r log pi + (1 - r) log(1 - pi / (D rho)); all of one shape, reward in [0, 1].

    ``rho`` is data: no gradient is to flow through it.
    """
    z = torch.where(reward < 1, pi / (difficulty * rho), 0.0)  # where r = 1, z may be 1 and above
    return reward * pi.log() + (1 - reward) * torch.log1p(-z)


def multiplier(pi: Tensor, reward: Tensor, difficulty: Tensor | float, rho: Tensor | float = 1.0) -> Tensor:
    """What grad log pi of each answer is multiplied by in -grad L (theorem 1): r - (1 - r) pi / (D rho - pi)."""
    z = torch.where(reward < 1, pi / (difficulty * rho), 0.0)
    return reward - (1 - reward) * z / (1 - z)


def j_mle(pi: Tensor, reward: Tensor, difficulty: Tensor | float, rho: Tensor | float = 1.0) -> Tensor:
    """J_MLE = E_pi[r] - E_pi[w(pi / (D rho)) (1 - r)] (eq. 11), whose gradient is -grad L on-policy (theorem 2).

    Args:
        pi: [..., O], the probability of every answer there is.
        reward: [..., O], the chance that it is judged right, in [0, 1].
        difficulty, rho: D and the preference, of shapes that broadcast; z = pi / (D rho) < 1 wherever reward < 1.
    """
    z = torch.where(reward < 1, pi / (difficulty * rho), 0.0)
    return (pi * (reward - w(z) * (1 - reward))).sum(dim=-1)


def confidence_under(rho: Preference, confidence: Tensor, lengths: Tensor | None, valid: Tensor) -> Tensor:
    """pi / rho of each answer, which LENS then takes for its confidence: D and the penalty stay what they are.

    D = max(D_imp, 2 max) scales with it and the penalty is a ratio, so a factor that a group shares cancels; here the
    largest of a group is made 1, as the probabilities of long answers underflow.

    Args:
        rho: a number gamma stands for gamma^length (1: the plain framework), "policy" for the policy itself; None is
            the paper's practice, the length-normalised confidence as it is.
        confidence: [Q, G], geometric-mean token probability.
        lengths: [Q, G], numbers of tokens; needed where rho is a number.
        valid: bool [Q, G].

    Returns:
        float64 [Q, G].
    """
    confidence = confidence.double().clamp(min=torch.finfo(torch.float64).tiny)  # it may have underflowed to 0
    if rho is None:
        return confidence
    if rho == "policy":
        return torch.ones_like(confidence)
    log_ratio = lengths * (confidence / rho).log()  # log(pi / gamma^|o|)
    highest = log_ratio.where(valid, -torch.inf).amax(dim=1, keepdim=True)
    return (log_ratio - highest).clamp(min=-700.0, max=0.0).exp()  # exp(-700) is about the smallest there is
