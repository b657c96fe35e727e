"""Measures the share of the weights that an update changes: where it is low, rounding may swallow the updates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lens.distributed.collectives import local_part, sum_over_processes

SAMPLED = 2**16  # a larger tensor is judged by about this many of its weights


def sample_weights(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return views of evenly spaced weights of each tensor, of this process's shard; all of a small one."""
    flat = [local_part(tensor.detach()).flatten() for tensor in tensors]
    return [values[:: len(values) // SAMPLED | 1] for values in flat]  # odd: not always the same column


def changed_share(before: Sequence[Tensor], tensors: Sequence[Tensor]) -> float:
    """Return the share of all weights that differ from those before, over all processes.

    Args:
        before: copies of what `sample_weights` returned before the update.
        tensors: the same tensors after it.
    """
    sizes = [local_part(tensor).numel() for tensor in tensors]
    after = sample_weights(tensors)
    unequal = torch.stack([(a != b).sum() for a, b in zip(before, after, strict=True)]).tolist()
    changed = sum(size * n / max(1, len(b)) for size, n, b in zip(sizes, unequal, before, strict=True))
    sums = sum_over_processes(torch.tensor([changed, sum(sizes)], dtype=torch.float64))
    return (sums[0] / sums[1]).item()
