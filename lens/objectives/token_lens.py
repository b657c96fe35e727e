"""The penalty of a negative group, spread over the tokens of an answer by the policy's confidence in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, group_kinds, normalise
from lens.objectives.options import between, not_negative, one_of
from lens.objectives.tokens import token_mean

MAX_SURPRISAL = 5.0  # nats; the surprisal of not sampling a token of probability 0.9933

# From the log-probability of a token to its weight, before the weights of an answer are divided by their mean.
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "probability": torch.exp,
    "surprisal": lambda log_pi: (-torch.log(-torch.expm1(log_pi))).clamp(max=MAX_SURPRISAL),
    "lens": lambda log_pi: log_pi.exp() / (2 - log_pi.exp()),
    "reversed": lambda log_pi: -torch.expm1(log_pi),
}


def token_lens_advantages(
    correct: Tensor,
    *,
    logprobs: Tensor,
    mask: Tensor,
    alpha: float = 0.25,
    shape: Literal["probability", "surprisal", "lens", "reversed"] = "probability",
    max_probability: float | None = None,
    eps: float = 1e-6,
    rewards: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return GRPO's advantages, and in negative groups A_it = -(alpha/G) g_it / mean_t g_it.

    The mean of an answer's A_it over its tokens is -alpha/G, as under `uniform_advantages`; only where in the answer
    the penalty falls differs.

    Args:
        correct, valid: bool [Q, G]. Invalid answers do not count in G, and get 0.
        logprobs: [Q, G, T], log pi_it of the sampled tokens under the sampling policy.
        mask: bool [Q, G, T], real tokens; the others get 0.
        alpha: weight of negative groups.
        shape: what g is. "probability": pi. "surprisal": -log(1 - pi), at most 5. "lens": pi / (2 - pi), the penalty
            of LENS with D = 2. "reversed": 1 - pi, a control: the unlikely tokens pay.
        max_probability: tokens above it get 0; the others of the answer pay for them. None leaves none out.
        eps: added to the standard deviation in mixed groups.
        rewards: [Q, G], what groups that are not negative compare; None: the verdicts.

    Returns:
        float32 [Q, G, T]. An answer whose g are all 0 gets 0.

    Raises:
        ValueError: alpha is below 0, max_probability is outside [0, 1], or the shape has another name.
    """
    not_negative(alpha=alpha)
    one_of(SHAPES, shape=shape)
    between(0, 1, max_probability=1.0 if max_probability is None else max_probability)
    valid = all_valid(correct, valid)
    log_pi = logprobs.double().where(mask, 0.0).clamp(max=0.0)  # [Q, G, T]
    pays = mask if max_probability is None else mask & (log_pi.exp() <= max_probability)
    g = SHAPES[shape](log_pi).where(pays, 0.0)  # [Q, G, T]
    mean = token_mean(g, mask).unsqueeze(-1)  # [Q, G, 1]; g may be 0 throughout
    weights = g / mean.where(mean > 0, 1.0)
    a = alpha / valid.sum(dim=1, keepdim=True).clamp(min=1).double()  # [Q, 1]
    of_grpo = normalise(correct if rewards is None else rewards, valid, eps=eps)  # [Q, G]
    negative = group_kinds(correct, valid).negative.unsqueeze(-1)  # [Q, 1, 1]
    advantages = torch.where(negative, -a.unsqueeze(-1) * weights, of_grpo.unsqueeze(-1))
    return advantages.where(mask & valid.unsqueeze(-1), 0.0).float()
