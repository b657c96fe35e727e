"""Draws the problems of a world: which split one belongs to, and as many of each level."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from lens.errors import ConfigError

SPLIT_SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
Drawn = TypeVar("Drawn")


def choose_split(identity: str) -> str:
    """Return the split of everything that shares a text. It is the same on every machine, for every seed and size."""
    digest = hashlib.sha256(identity.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in SPLIT_SHARES.items():
        if place < share:
            return split
        place -= share
    return split


def draw_by_level(
    find_pool: Callable[[int, str], Sequence[Drawn]],
    split: str,
    *,
    size: int | None,
    levels: Sequence[int],
    known: Sequence[int],
    seed: int,
    key: str,
) -> list[Drawn]:
    """Draw from the pools of several levels, equally many of each, in an order drawn from the seed.

    Args:
        find_pool: returns all that there is of a level and a split.
        split: train, validation or test.
        size: how many to draw. None: all that the levels can give in equal parts.
        levels: the levels to draw from.
        known: the levels that there are.
        seed: decides what is drawn, and the order.
        key: where the source stands in the config, for error messages.

    Raises:
        ConfigError: the split or a level is unknown, or the size is not a multiple of the number of levels or is
            beyond the supply.
    """
    if split not in SPLIT_SHARES:
        raise ConfigError(f"{key}.split", split, f"must be one of {', '.join(SPLIT_SHARES)}")
    if not levels or not set(levels) <= set(known) or len(set(levels)) != len(levels):
        raise ConfigError(f"{key}.levels", list(levels), f"must be different levels out of {min(known)}..{max(known)}")
    supply = min(len(find_pool(level, split)) for level in levels)
    per_level = supply if size is None else size // len(levels)
    if size is not None and (size < len(levels) or size % len(levels) or per_level > supply):
        valid = f"must be a multiple of {len(levels)} from {len(levels)} to {supply * len(levels)} for split {split}"
        raise ConfigError(f"{key}.size", size, valid)
    rng = random.Random(f"problems {seed}")
    drawn = [pick for level in levels for pick in rng.sample(find_pool(level, split), per_level)]
    rng.shuffle(drawn)
    return drawn
