"""Refuses values of options that an objective cannot work with."""

from __future__ import annotations

import math
from collections.abc import Collection


def between(low: float, high: float, **options: float) -> None:
    """Raise ValueError for the first option that is outside [low, high] or not a number."""
    for name, value in options.items():
        if not low <= value <= high:
            raise ValueError(f"{name}={value}: between {low:g} and {high:g}")


def not_negative(**options: float) -> None:
    """Raise ValueError for the first option that is below 0 or not finite."""
    for name, value in options.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: a number of 0 or more")


def one_of(choices: Collection[str], **options: str) -> None:
    """Raise ValueError for the first option that is none of the choices."""
    for name, value in options.items():
        if value not in choices:
            raise ValueError(f"{name}={value!r}: one of {', '.join(choices)}")
