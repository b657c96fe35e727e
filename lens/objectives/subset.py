"""Trains on a few answers of each negative group, drawn so that the expected gradient stays what it was.

A drawn answer is multiplied by the inverse of its chance. All others get exactly 0, and cost no pass.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lens.objectives.options import one_of


def sample_negatives(
    advantages: Tensor,
    negative: Tensor,
    keep: int,
    generator: torch.Generator,
    *,
    by: Literal["answer", "size"] = "answer",
) -> Tensor:
    """Return advantages in which each negative group has at most ``keep`` answers that are not 0.

    With n answers of a group that are not 0, x_i the gradient of an answer of advantage 1, and k = keep:

    * by="answer" keeps k of the n at random, each times n/k. The variance of sum_i A_i x_i is n^2 (1/k - 1/n) times
      the sample variance of the A_i x_i.
    * by="size" makes k independent draws with the chances p_i = |A_i| / sum_j |A_j|, so an answer may be drawn twice.
      One that is drawn m times is multiplied by m / (k p_i). The variance is
      [sum_i (A_i x_i)^2 / p_i - (sum_i A_i x_i)^2] / k. No other p has a smaller one if all x_i are of one size.

    A group with k answers or fewer is kept as it is.

    Args:
        advantages: [Q, G], or [Q, G, T], where the size of an answer is the mean |A_it| of its tokens that are not 0.
            NaN stays NaN, and is never drawn.
        negative: bool [Q, 1], which groups to draw from.
        keep: answers to keep in each, 1 or more.
        generator: decides the draws. It advances by as much for every set of groups of one shape under by="answer".

    Returns:
        of the shape and type of ``advantages``.

    Raises:
        ValueError: keep is below 1, or ``by`` has another name.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: 1 or more")
    one_of(("answer", "size"), by=by)
    size = sizes(advantages)  # [Q, G]
    weights = size if by == "size" else (size > 0).double()
    chances = weights / weights.sum(dim=1, keepdim=True).where(weights.any(dim=1, keepdim=True), 1.0)
    counts = (draw_by_chance if by == "size" else draw_each_once)(chances, keep, generator)
    drawn_from = negative & ((size > 0).sum(dim=1, keepdim=True) > keep)
    return torch.where(_as(drawn_from, advantages), reweighted(advantages, counts, chances, keep), advantages)


def reweighted(advantages: Tensor, counts: Tensor, chances: Tensor, keep: int) -> Tensor:
    """Return A_i counts_i / (keep p_i), exactly 0 where ``counts`` [Q, G] is 0; what has no chance [Q, G] stays."""
    expected = keep * chances.where(chances > 0, 1.0)
    scaled = advantages.double() * _as(counts / expected, advantages)
    drawn = scaled.where(_as(counts > 0, advantages), 0.0).to(advantages.dtype)
    return torch.where(_as(chances > 0, advantages), drawn, advantages)


def draw_each_once(chances: Tensor, keep: int, generator: torch.Generator) -> Tensor:
    """Return 1 for ``keep`` random answers of each group with a chance above 0, else 0; int64 [Q, G]."""
    keys = torch.rand(chances.shape, generator=generator, dtype=torch.float64)
    order = torch.where(chances > 0, keys, 2.0).argsort(dim=1)
    chosen = torch.zeros_like(order).scatter_(1, order[:, :keep], 1)
    return chosen * (chances > 0)


def draw_by_chance(chances: Tensor, keep: int, generator: torch.Generator) -> Tensor:
    """Return how often each answer is among ``keep`` independent draws from its group, int64 [Q, G]."""
    some = chances.sum(dim=1, keepdim=True) > 0
    drawn = torch.multinomial(chances.where(some, 1.0), keep, replacement=True, generator=generator)  # [Q, keep]
    counts = torch.zeros(chances.shape, dtype=torch.int64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn)) * some


def sizes(advantages: Tensor) -> Tensor:
    """Return |A_i|, or the mean of the |A_it| that are not 0, float64 [Q, G]; 0 for NaN."""
    size = advantages.double().abs().nan_to_num(nan=0.0)
    return size if size.dim() == 2 else size.sum(dim=-1) / (size > 0).sum(dim=-1).clamp(min=1)


def _as(per_answer: Tensor, advantages: Tensor) -> Tensor:
    """Return values of answers [Q, G] with as many dimensions as the advantages."""
    return per_answer.unsqueeze(-1) if advantages.dim() == 3 else per_answer
