"""From values of tokens [Q, G, T] to values of answers [Q, G], and back. What lies outside the mask is never read."""

from __future__ import annotations

import torch
from torch import Tensor


def token_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of ``values`` [Q, G, T] over the tokens of each answer, float64 [Q, G]."""
    return torch.where(mask, values.double(), 0.0).sum(dim=-1)


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``values`` [Q, G, T] over the tokens of each answer, float64 [Q, G]; 0 without a token."""
    return token_sum(values, mask) / mask.sum(dim=-1).clamp(min=1)
