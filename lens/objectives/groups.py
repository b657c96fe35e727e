"""Tells the kind of a group, and centres and normalises its rewards. Every objective builds on this."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-12  # equal rewards, centred in float64, may differ from 0 by this much; they are set to exactly 0


class GroupKinds(NamedTuple):
    """Which groups are negative (no answer correct), mixed (some correct) and positive (all correct).

    Each is bool [Q, 1].
    """

    negative: Tensor
    mixed: Tensor
    positive: Tensor


def all_valid(correct: Tensor, valid: Tensor | None) -> Tensor:
    """Return ``valid`` as bool [Q, G]; all True if it is None."""
    return torch.ones_like(correct, dtype=torch.bool) if valid is None else valid.bool()


def group_kinds(correct: Tensor, valid: Tensor | None = None) -> GroupKinds:
    """Return the kind of each group, by its valid answers. A group without valid answers has no kind."""
    valid = all_valid(correct, valid)
    any_right = (correct & valid).any(dim=1, keepdim=True)
    any_wrong = (~correct & valid).any(dim=1, keepdim=True)
    return GroupKinds(any_wrong & ~any_right, any_wrong & any_right, any_right & ~any_wrong)


def group_mean(rewards: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of rewards [Q, G] over the valid answers of each group, float64 [Q, 1]; 0 without any."""
    size = valid.sum(dim=1, keepdim=True).clamp(min=1)
    return (rewards.double() * valid).sum(dim=1, keepdim=True) / size


def group_std(centred: Tensor, valid: Tensor) -> Tensor:
    """Return the sample standard deviation (n - 1) of rewards centred by `centre`, [Q, 1]; 0 below two answers."""
    size = valid.sum(dim=1, keepdim=True)
    return (centred.square().sum(dim=1, keepdim=True) / (size - 1).clamp(min=1)).sqrt()


def centre(rewards: Tensor, valid: Tensor) -> Tensor:
    """Return rewards [Q, G] minus the mean over the valid answers of their group, in float64.

    Invalid entries, and differences that are mere rounding, become exactly 0.
    """
    centred = (rewards.double() - group_mean(rewards, valid)) * valid
    return torch.where(centred.abs() > ROUNDING, centred, 0.0)


def normalise(rewards: Tensor, valid: Tensor, *, eps: float, scale_by_std: bool = True) -> Tensor:
    """Return rewards [Q, G] centred and divided by the sample standard deviation plus eps, as GRPO does.

    A group whose valid rewards are all equal gets exactly 0. ``scale_by_std=False`` leaves out the division.
    """
    centred = centre(rewards, valid)
    if not scale_by_std:
        return centred
    return centred / (group_std(centred, valid) + eps)
