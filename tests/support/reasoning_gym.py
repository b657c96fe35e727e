"""Puzzles of reasoning-gym to test with: few, of tasks that an independent check is easily written for."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from datasets import Dataset

from lens.problems.reasoning_gym import load_reasoning_gym

VERSION = "0.1.25"
TASKS = ["chain_sum", "spell_backward", "lcm"]
LEVELS = {"chain_sum": [1, 2, 3, 4, 5], "spell_backward": [1, 2, 4, 5], "lcm": [1, 2, 4, 5]}
needs_reasoning_gym = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")


def worlds_that_can_be_made(worlds: list[str]) -> list:
    """Worlds as test parameters; the one that the package makes is skipped where there is none."""
    return [pytest.param(world, marks=[needs_reasoning_gym] * (world == "gym")) for world in worlds]


def make_puzzles(split: str, item_seed: int, per_level: int = 6) -> Dataset:
    options = {"tasks": TASKS, "version": VERSION, "time_limit_s": 300}
    return load_reasoning_gym(**options, split=split, item_seed=item_seed, per_level=per_level)
