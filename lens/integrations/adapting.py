"""What adapters for trainers share: batches of different widths, advantages for each token, a class around a class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, cat

from lens.integrations.names import Objective, make_objective


def with_objective(
    mixin: type, base: type, objective: str | Objective, options: Mapping[str, Any], **others: Any
) -> type:
    """Return a subclass of a trainer's class that puts an objective in place of its advantages.

    Args:
        mixin: the adapter; it goes before the base, and reads ``self.objective``.
        base: the trainer's own class.
        objective, options: as in `make_objective`.
        others: further attributes of the class.

    Raises:
        InputError: the objective is unknown, or has no such option.
    """
    made = make_objective(objective, **options)
    return type(f"Lens{base.__name__}", (mixin, base), {"objective": staticmethod(made), **others})


def stack_rows(batches: Sequence[Tensor]) -> Tensor:
    """Return batches [B_i, T_i] as one [B, T], filled with 0 on the right."""
    width = max(batch.shape[1] for batch in batches)
    return cat([F.pad(batch, (0, width - batch.shape[1])) for batch in batches])


def per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """Return advantages [B] or [B, T] for each token, float32 [B, T], 0 outside the mask."""
    return (advantages if advantages.dim() == 2 else advantages[:, None]) * mask


def warn_of(pitfalls: Mapping[str, Any]) -> None:
    """Warn with each sentence whose condition holds."""
    for message, is_true in pitfalls.items():
        if is_true:
            warnings.warn(message, stacklevel=3)
