"""Puts a preference rho into the confidences that LENS trains on (paper, appendix C).

The theory divides the probability of an answer by rho (lens/objectives/theory.py). In training, the probability of a
long answer underflows. So here the quotient is taken in logarithms, scaled by group, and clamped.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Preference = float | Literal["policy"] | None


def confidence_under(rho: Preference, confidence: Tensor, lengths: Tensor | None, valid: Tensor) -> Tensor:
    """Return pi / rho of each answer, scaled by group, for LENS to use in place of the length-normalised confidence.

    D and the penalty keep their formulas. A factor that a group shares cancels: D = max(D_imp, 2 max) scales with it,
    and the penalty is a ratio. So the largest value of a group is made 1, and values below exp(-700) are raised to it.

    Args:
        rho: a number gamma means gamma^length (1 is the plain framework). "policy" means the policy itself. None
            returns the confidence itself, which is the paper's practice.
        confidence: [Q, G], geometric-mean token probability.
        lengths: [Q, G], numbers of tokens; needed if rho is a number.
        valid: bool [Q, G].

    Returns:
        float64 [Q, G], above 0.

    Raises:
        ValueError: rho is a number, and lengths are not given.
    """
    confidence = confidence.double().clamp(min=torch.finfo(torch.float64).tiny)  # it may have underflowed to 0
    if rho is None:
        return confidence
    if rho == "policy":
        return torch.ones_like(confidence)
    if lengths is None:
        raise ValueError(f"rho={rho} needs lengths")
    log_ratio = lengths * (confidence / rho).log()  # log(pi / gamma^|o|)
    highest = log_ratio.where(valid, -torch.inf).amax(dim=1, keepdim=True)
    return (log_ratio - highest).clamp(min=-700.0, max=0.0).exp()  # exp(-700) is still above 0 in float64
