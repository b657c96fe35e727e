"""Calls a surrogate loss on a few answers that are written down as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch

from lens.losses.surrogate import Surrogate, call_surrogate


class Rated(NamedTuple):
    """Losses, clipped tokens, and the derivative of the sum of all losses by each log-probability."""

    losses: list[float]
    clipped: list[bool]
    gradient: list[float]


def rate(
    loss: Callable[..., Surrogate],
    log_ratios: Sequence[Sequence[float]],
    advantages: Sequence[float | Sequence[float]],
    *,
    old: float = -1.0,
    **options: Any,
) -> Rated:
    """Call a loss in float64.

    Args:
        loss: the loss.
        log_ratios: of each answer, log pi - log pi_old of its tokens.
        advantages: of each answer, its advantage or those of its tokens.
        old: the log-probability of every token under the old policy.
        options: the loss's own.
    """
    lengths = torch.tensor([len(answer) for answer in log_ratios])
    each = [a if isinstance(a, Sequence) else [a] * n for a, n in zip(advantages, lengths.tolist(), strict=True)]
    given, a = (torch.tensor([*chain(*values)], dtype=torch.float64) for values in (log_ratios, each))  # [n]
    logprobs = (old + given).requires_grad_()
    losses, clipped = call_surrogate(partial(loss, **options), logprobs, torch.full_like(given, old), a, lengths)
    losses.sum().backward()
    return Rated(losses.tolist(), clipped.tolist(), logprobs.grad.tolist())
