"""Derives seeds, seeds the random number generators, and saves and restores their states."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Derive a seed of 63 bits from all parts; it is the same on every machine."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators. Call it after making the rollout engine, which may seed them too."""
    torch.manual_seed(derive_seed(seed, "torch"))
    np.random.seed(derive_seed(seed, "numpy") % 2**32)
    random.seed(derive_seed(seed, "python"))


def random_states() -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's global generators, as plain values and tensors."""
    version, python, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(python), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore the states that `random_states` returned."""
    version, python, gauss = states["python"]
    random.setstate((version, tuple(python), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])


@contextmanager
def keeping_random_states() -> Iterator[None]:
    """Put the global generators back when the block ends, so that what it draws changes nothing outside."""
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)
