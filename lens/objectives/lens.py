"""LENS: penalise each wrong answer by the policy's confidence in it (paper, section 5).

LENS changes the reward of wrong answers. In a negative group it also multiplies by alpha where GRPO divides by the
standard deviation. Sampling and loss are GRPO's. For one question with G answers o_i and verdicts r_i in {0, 1}:

    confidence         pibar_i = pi_old(o_i|q)^(1/|o_i|), the geometric mean of the token probabilities
    difficulty         D = max(D_imp, 2 max_j pibar_j)          D_imp = [(1/G) sum_i r_i / pibar_i]^-1
                       D = 2 max_j pibar_j                      without a correct answer, as D_imp is undefined
    calibrated reward  r~_i = 1                                 for a correct answer
                       r~_i = -(1/G) pibar_i / (D - pibar_i)    for a wrong answer, where GRPO has 0

    mixed group        A_i = (r~_i - mean(r~)) / (std(r~) + eps)    as in GRPO
    negative group     A_i = alpha (r~_i - mean(r~))                where GRPO has 0
    positive group     A_i = 0                                      as in GRPO

The answers of a negative group now have different rewards. So the group teaches: its less confident answers are raised,
its more confident ones lowered.

The three functions below follow these lines from top to bottom. Verdicts, confidences, rewards and advantages are
[Q, G], G answers to each of Q questions; D is [Q, 1].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, centre, group_kinds, normalise
from lens.objectives.preference import Preference, confidence_under


def estimate_difficulty(
    correct: Tensor,
    confidence: Tensor,
    *,
    rewards: Tensor | None = None,
    lengths: Tensor | None = None,
    difficulty: Literal["length_normalized", "sequence"] = "length_normalized",
    valid: Tensor | None = None,
) -> Tensor:
    """Return the difficulty of each question, D = max(D_imp, 2 max_j pibar_j).

    D_imp = [(1/G) sum_i r_i / pi_i]^-1 is an importance-sampling estimate. Without a correct answer it is undefined,
    and D = 2 max_j pibar_j. Either way D - pibar_i > 0, and pibar_i / (D - pibar_i) is in (0, 1].

    Args:
        correct, confidence, rewards, lengths, valid: as in `calibrated_rewards`.
        difficulty: what pi_i is in D_imp. "length_normalized": pibar_i, on the same scale as the maximum beside it.
            "sequence": pibar_i^length_i, the probability of the whole answer, as the paper prints it.

    Returns:
        float64 [Q, 1].

    Raises:
        ValueError: difficulty="sequence" without lengths.
    """
    if difficulty == "sequence" and lengths is None:
        raise ValueError('difficulty="sequence" needs lengths')
    valid = all_valid(correct, valid)
    confidence = confidence.double().clamp(min=torch.finfo(torch.float64).tiny)  # it may have underflowed to 0
    log_pi = confidence.log() * (lengths if difficulty == "sequence" else 1)  # [Q, G]
    r = (correct if rewards is None else rewards).double().clamp(0, 1) * valid  # [Q, G]
    log_inverse = (r.log() - log_pi).logsumexp(dim=1, keepdim=True)  # [Q, 1], log sum_i r_i / pi_i
    size = valid.sum(dim=1, keepdim=True)  # [Q, 1], G
    d_imp = torch.where((r > 0).any(dim=1, keepdim=True), (size.log() - log_inverse).exp(), 0.0)  # [Q, 1]
    return torch.maximum(d_imp, 2 * torch.where(valid, confidence, 0.0).amax(dim=1, keepdim=True))


def calibrated_rewards(
    correct: Tensor,
    confidence: Tensor,
    *,
    rewards: Tensor | None = None,
    lengths: Tensor | None = None,
    difficulty: Literal["length_normalized", "sequence"] = "length_normalized",
    scale_mixed: float | None = None,
    scale_negative: float | None = None,
    rho: Preference = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return the calibrated rewards r~_i = r_i - (1 - r_i) * scale * pibar_i / (D - pibar_i), where scale is 1/G.

    Args:
        correct: bool [Q, G], the verdicts r.
        confidence: [Q, G] in (0, 1], pibar: the geometric mean of an answer's token probabilities under the policy
            that sampled it.
        rewards: [Q, G], finite numbers r in place of the verdicts. A wrong answer with a reward above 0 is penalised
            less, by the factor 1 - r, as in the paper's eq. 9. None: 1 and 0.
        lengths: [Q, G], numbers of tokens. Only difficulty="sequence" and a number as rho need them.
        difficulty: see `estimate_difficulty`.
        scale_mixed, scale_negative: the scale in mixed and in negative groups. None: the paper's 1/G.
        rho: the preference that the probability of an answer is divided by; see `confidence_under`. None: the paper's
            practice, the length-normalised confidence.
        valid: bool [Q, G]. Invalid answers do not count in max, sum and G, and get 0. None: all are valid.

    Returns:
        float32 [Q, G]: r for a correct answer, in [r - scale, r) for a wrong one with r = 0.
    """
    valid = all_valid(correct, valid)
    confidence = confidence_under(rho, confidence, lengths, valid)  # [Q, G]
    of_group = {"rewards": rewards, "lengths": lengths, "difficulty": difficulty, "valid": valid}
    d = estimate_difficulty(correct, confidence, **of_group)  # [Q, 1]
    one_over_g = 1 / valid.sum(dim=1, keepdim=True).clamp(min=1).double()  # [Q, 1]
    in_mixed, in_negative = (one_over_g if s is None else s * torch.ones_like(d) for s in (scale_mixed, scale_negative))
    scale = torch.where(group_kinds(correct, valid).negative, in_negative, in_mixed)  # [Q, 1]
    r = (correct if rewards is None else rewards).double()  # [Q, G]
    calibrated = torch.where(correct, r, r - (1 - r).clamp(0, 1) * scale * confidence / (d - confidence))  # [Q, G]
    return torch.where(valid, calibrated, 0.0).float()


def lens_advantages(
    correct: Tensor,
    confidence: Tensor,
    *,
    rewards: Tensor | None = None,
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
    """Return the advantages of LENS.

    Mixed groups: (r~ - mean) / (std + eps), as in GRPO. Negative groups: alpha * (r~ - mean). Equal rewards: 0.

    Args:
        correct, confidence, rewards, difficulty, scale_mixed, scale_negative, rho, lengths, valid: see
            `calibrated_rewards`.
        alpha: weight of negative groups; the paper's only hyperparameter.
        groups: "all" is LENS. The others are the paper's ablations: "mixed" gives negative groups no signal,
            "negative" gives mixed groups the rewards of GRPO.
        eps, scale_by_std: the normalisation of mixed groups; see `grpo_advantages`.

    Returns:
        float32 [Q, G].
    """
    valid = all_valid(correct, valid)
    options = {"difficulty": difficulty, "scale_mixed": scale_mixed, "scale_negative": scale_negative, "rho": rho}
    calibrated = calibrated_rewards(correct, confidence, rewards=rewards, lengths=lengths, valid=valid, **options)
    plain = correct if rewards is None else rewards
    in_mixed = normalise(plain if groups == "negative" else calibrated, valid, eps=eps, scale_by_std=scale_by_std)
    in_negative = 0.0 if groups == "mixed" else alpha * centre(calibrated, valid)  # no division by std
    return torch.where(group_kinds(correct, valid).negative, in_negative, in_mixed).float()
