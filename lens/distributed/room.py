"""Gives memory to weights on torch's meta device, where a tensor has a shape and no numbers."""

from __future__ import annotations

import torch
from torch import nn


def make_room(model: nn.Module, device: str) -> None:
    """Give the weights on the meta device memory, whose numbers are 0, and move all others to the device.

    A shard gets as much memory as it needs itself. Tied weights stay tied.

    Args:
        model: a model of transformers, sharded or not.
        device: "cpu" or "cuda".
    """
    model._apply(lambda t: torch.zeros_like(t, device=device) if t.is_meta else t.to(device))
    model.tie_weights()
