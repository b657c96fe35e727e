"""Worlds: problems that are made here, each with an imperfect teacher who starts the tiny model off.

A world is one module of this folder that offers what `World` lists. Its name is the module's. ``dataset.NAME.source``
and ``model.recipe.world`` both take it. docs/worlds.md makes one from nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol, runtime_checkable

from datasets import Dataset

from lens.errors import ConfigError


@runtime_checkable
class World(Protocol):
    """What a module of this folder offers, if it is a world.

    Attributes:
        LEVELS: the levels that its problems have, out of 1 (easy) to 5 (hard).
        TEACHING: constants that decide what the teacher says. A model's folder is named by a hash of their ``repr``, so
            a change of one of them makes another model.
    """

    LEVELS: Sequence[int]
    TEACHING: tuple[Any, ...]

    def load(self, split: str, *, size: int | None, levels: Sequence[int], seed: int, key: str) -> Dataset:
        """Make the problems of one split, equally many of each level; rows of the schema in lens/problems/problem.py.

        Args:
            split: train, validation or test, which share no problem.
            size: number of problems. None: all that the levels can give in equal parts.
            levels: the levels to draw from. By default all.
            seed: decides which problems are drawn, and their order.
            key: where the source stands in the config, for error messages.

        Raises:
            ConfigError: there is no such split, level or size.
        """

    def teach(self, rng: random.Random) -> tuple[str, str]:
        r"""Give one lesson: a training problem, and the teacher's solution, whose last box is its answer.

        Both are words with single spaces between them.
        """

    def vocabulary(self) -> list[str]:
        """Return every word of all problems and solutions once, in an order that never changes."""


def find_world(name: str, key: str) -> World:
    """Return the module of a world.

    Args:
        name: its name.
        key: the config key that names it, for the error message.

    Raises:
        ConfigError: there is no such world.
    """
    if name not in list_worlds():
        raise ConfigError(key, name, f"must be one of {', '.join(list_worlds())}, the worlds of lens/problems/worlds/")
    return import_module(f"{__name__}.{name}")


@cache
def list_worlds() -> list[str]:
    """Return the names of all worlds."""
    names = sorted(module.name for module in iter_modules(__path__))
    return [name for name in names if isinstance(import_module(f"{__name__}.{name}"), World)]
