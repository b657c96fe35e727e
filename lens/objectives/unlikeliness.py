"""Unlikeliness reward (arXiv 2506.02355): a right answer earns the less, the likelier it was in its group."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, normalise
from lens.objectives.options import between, one_of
from lens.objectives.tokens import token_mean, token_sum


def unlikeliness_advantages(
    correct: Tensor,
    *,
    logprobs: Tensor,
    mask: Tensor,
    beta: float = 0.25,
    probability: Literal["sequence", "length_normalized"] = "sequence",
    eps: float = 1e-6,
    rewards: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return GRPO's advantages of the rewards r_i (1 - beta rank_i / G) for right answers, and r_i for wrong ones.

    rank_i counts the answers of the group that are less likely than answer i, wrong ones too: 0 is the least likely.
    Answers of equal probability share the mean of their ranks. So a positive group teaches: its rewards differ.

    Args:
        correct, valid: bool [Q, G]. Invalid answers have no rank, do not count in G, and get 0.
        logprobs, mask: [Q, G, T], log-probabilities of the sampled tokens, and which tokens are real.
        beta: what the likeliest answer loses, but for a factor (G - 1) / G. 0 is GRPO.
        probability: what the rank is of. "sequence": the probability of the whole answer, as in the paper.
            "length_normalized": the geometric mean of its tokens' probabilities, as in the authors' code.
        eps: added to the standard deviation.
        rewards: [Q, G]; None: the verdicts.

    Returns:
        float32 [Q, G].

    Raises:
        ValueError: beta is outside [0, 1], or the probability has another name.
    """
    between(0, 1, beta=beta)
    one_of(("sequence", "length_normalized"), probability=probability)
    valid = all_valid(correct, valid)
    rewards = (correct if rewards is None else rewards).double()
    log_pi = (token_sum if probability == "sequence" else token_mean)(logprobs, mask)  # [Q, G]
    size = valid.sum(dim=1, keepdim=True).clamp(min=1)  # [Q, 1], G
    earned = rewards * (1 - beta * ranks(log_pi, valid) / size)  # [Q, G]
    return normalise(torch.where(correct, earned, rewards), valid, eps=eps).float()


def ranks(values: Tensor, valid: Tensor) -> Tensor:
    """Return how many valid values of its group are below each value, float64 [Q, G]; an equal one counts 1/2."""
    others = valid.unsqueeze(1)  # [Q, 1, G]
    below = (values.unsqueeze(1) < values.unsqueeze(2)) & others  # [Q, G, G]
    equal = (values.unsqueeze(1) == values.unsqueeze(2)) & others  # a valid value equals itself
    return below.sum(dim=2) + (equal.sum(dim=2) - valid.int()) / 2.0
