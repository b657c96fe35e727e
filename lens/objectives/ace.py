"""ACE (arXiv 2602.21420): a wrong answer costs more if training has made it likelier than the reference model did."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, group_kinds, normalise
from lens.objectives.options import not_negative, one_of
from lens.objectives.tokens import token_mean, token_sum


def ace_advantages(
    correct: Tensor,
    *,
    logprobs: Tensor,
    reference_logprobs: Tensor,
    mask: Tensor,
    alpha: float = 1.0,
    shift: Literal["mean", "sum"] = "mean",
    negative_penalty: float = 0.0,
    eps: float = 1e-6,
    rewards: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return GRPO's advantages, the negative ones multiplied by 1 + alpha softplus(c_i).

    c_i = log(pi(o_i) / pi_ref(o_i)) is the confidence shift. softplus(c) = log(1 + e^c) is positive for every c: an
    answer that the policy has left alone (c = 0) is multiplied by 1 + alpha log 2.

    Args:
        correct, valid: bool [Q, G]. Invalid answers get 0.
        logprobs, reference_logprobs: [Q, G, T], log-probabilities of the sampled tokens under the sampling policy and
            under the reference model.
        mask: bool [Q, G, T], real tokens.
        alpha: strength of the correction; 0 is GRPO.
        shift: "mean" takes c_i per token, "sum" for the whole answer.
        negative_penalty: every answer of a negative group gets -negative_penalty / G before the factor, as under
            `uniform_advantages`. 0 is the paper: there, such a group has advantages of 0, and no factor changes that.
        eps: added to the standard deviation.
        rewards: [Q, G]; None: the verdicts.

    Returns:
        float32 [Q, G].

    Raises:
        ValueError: alpha or negative_penalty is below 0, or the shift has another name.
    """
    not_negative(alpha=alpha, negative_penalty=negative_penalty)
    one_of(("mean", "sum"), shift=shift)
    valid = all_valid(correct, valid)
    advantages = normalise(correct if rewards is None else rewards, valid, eps=eps)  # [Q, G]
    penalty = negative_penalty / valid.sum(dim=1, keepdim=True).clamp(min=1).double() * valid  # [Q, G]
    advantages = advantages - penalty * group_kinds(correct, valid).negative
    c = (token_mean if shift == "mean" else token_sum)(logprobs.double() - reference_logprobs.double(), mask)  # [Q, G]
    factor = 1 + alpha * torch.logaddexp(c, torch.zeros_like(c))
    return torch.where(advantages < 0, advantages * factor, advantages).float()
