"""LENS: wrong answers are penalised by the confidence they were given with (paper, section 5).

LENS changes the rewards and nothing else. A wrong answer no longer gets 0 but

    r~_i = -(1/G) * pibar_i / (D - pibar_i),

where pibar_i is its confidence (geometric-mean token probability) and D the difficulty of the question, so that the
answers of a group without a correct one differ, and teach.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, centre, group_kinds, normalise
from lens.objectives.theory import Preference, confidence_under


def estimate_difficulty(
    correct: Tensor,
    confidence: Tensor,
    *,
    lengths: Tensor | None = None,
    difficulty: Literal["length_normalized", "sequence"] = "length_normalized",
    valid: Tensor | None = None,
) -> Tensor:
    """D = max(D_imp, 2 max_j pibar_j) with D_imp = [(1/G) sum_i r_i / pi_i]^-1, which only a correct answer defines.

    Args:
        correct, confidence, lengths, valid: as in `calibrated_rewards`.
        difficulty: pi in D_imp is pibar ("length_normalized"), or pibar^length, as printed ("sequence").

    Returns:
        float64 [Q, 1], so that D - pibar_i > 0 and pibar_i / (D - pibar_i) is in (0, 1].
    """
    valid = all_valid(correct, valid)
    confidence = confidence.double().clamp(min=torch.finfo(torch.float64).tiny)  # it may have underflowed to 0
    log_pi = confidence.log() * (lengths if difficulty == "sequence" else 1)
    right = correct & valid
    log_inverse = torch.where(right, -log_pi, -math.inf).logsumexp(dim=1, keepdim=True)  # log sum_i r_i / pi_i
    size = valid.sum(dim=1, keepdim=True)
    d_imp = torch.where(right.any(dim=1, keepdim=True), (size.log() - log_inverse).exp(), 0.0)
    return torch.maximum(d_imp, 2 * torch.where(valid, confidence, 0.0).amax(dim=1, keepdim=True))


def calibrated_rewards(
    correct: Tensor,
    confidence: Tensor,
    *,
    lengths: Tensor | None = None,
    difficulty: Literal["length_normalized", "sequence"] = "length_normalized",
    scale_mixed: float | None = None,
    scale_negative: float | None = None,
    rho: Preference = None,
    valid: Tensor | None = None,
) -> Tensor:
    """r~_i = r_i - (1 - r_i) * scale * pibar_i / (D - pibar_i); scale is 1/G.

    Args:
        correct: bool [Q, G], verdicts on G answers to each of Q questions.
        confidence: [Q, G] in (0, 1], geometric-mean probability of an answer's tokens under the sampling policy.
        lengths: [Q, G], numbers of tokens; needed by difficulty="sequence" and a number rho alone.
        difficulty: see `estimate_difficulty`.
        scale_mixed, scale_negative: the scale in mixed and in negative groups; None is the paper's 1/G.
        rho: the preference that confidence is divided by (see `confidence_under`); None: the length-normalised form.
        valid: bool [Q, G]; other answers are out of max, sum and G, and get 0. None: all valid.

    Returns:
        float32 [Q, G]: 1 for a correct answer, in [-scale, 0) for a wrong one.
    """
    valid = all_valid(correct, valid)
    confidence = confidence_under(rho, confidence, lengths, valid)  # [Q, G]
    d = estimate_difficulty(correct, confidence, lengths=lengths, difficulty=difficulty, valid=valid)  # [Q, 1]
    one_over_g = 1 / valid.sum(dim=1, keepdim=True).clamp(min=1).double()  # [Q, 1]
    in_mixed, in_negative = (one_over_g if s is None else s * torch.ones_like(d) for s in (scale_mixed, scale_negative))
    scale = torch.where(group_kinds(correct, valid).negative, in_negative, in_mixed)
    rewards = torch.where(correct, 1.0, -scale * confidence / (d - confidence))  # [Q, G]
    return torch.where(valid, rewards, 0.0).float()


def lens_advantages(
    correct: Tensor,
    confidence: Tensor,
    *,
    alpha: float = 0.25,
    groups: Literal["all", "mixed", "negative"] = "all",
    difficulty: Literal["length_normalized", "sequence"] = "length_normalized",
    scale_mixed: float | None = None,
    scale_negative: float | None = None,
    rho: Preference = None,
    eps: float = 1e-6,
    scale_by_std: bool = True,
    lengths: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Mixed groups: (r~ - mean) / (std + eps), as in GRPO. Negative groups: alpha * (r~ - mean). Positive groups: 0.

    Args:
        correct, confidence, ..., valid: those shared with `calibrated_rewards` mean the same.
        alpha: weight of negative groups.
        groups: "mixed" leaves negative groups without a signal, "negative" leaves mixed groups to GRPO.
        eps, scale_by_std: GRPO's normalisation of mixed groups.

    Returns:
        float32 [Q, G].
    """
    valid = all_valid(correct, valid)
    options = {"difficulty": difficulty, "scale_mixed": scale_mixed, "scale_negative": scale_negative, "rho": rho}
    rewards = calibrated_rewards(correct, confidence, lengths=lengths, valid=valid, **options)
    in_mixed = normalise(correct if groups == "negative" else rewards, valid, eps=eps, scale_by_std=scale_by_std)
    in_negative = 0.0 if groups == "mixed" else alpha * centre(rewards, valid)
    kinds = group_kinds(correct, valid)
    return torch.where(kinds.mixed, in_mixed, torch.where(kinds.negative, in_negative, 0.0)).float()
