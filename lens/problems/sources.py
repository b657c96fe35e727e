"""Loads the problems of a source by its name. LOADERS is the one list of sources that are read."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection
from typing import Any

from datasets import Dataset

from lens.errors import ConfigError
from lens.problems.countdown_file import load_countdown_file
from lens.problems.dapo import load_dapo
from lens.problems.math import load_math, load_math500
from lens.problems.numina import load_numina
from lens.problems.problem import FEATURES, fingerprint
from lens.problems.reasoning_gym import load_reasoning_gym
from lens.problems.worlds import find_world, list_worlds

log = logging.getLogger(__name__)

LOADERS = {
    "math": load_math,
    "math500": load_math500,
    "dapo": load_dapo,
    "numina": load_numina,
    "countdown_file": load_countdown_file,
    "reasoning_gym": load_reasoning_gym,
}


def load_problems(
    source: str,
    *,
    path: str | None = None,
    split: str | None = None,
    size: int | None = None,
    seed: int = 0,
    key: str | None = None,
    **options: Any,
) -> Dataset:
    """Load the problems of one source.

    Args:
        source: math, math500, dapo, numina, countdown_file, reasoning_gym, or a world (lens/problems/worlds/).
        path: local file in upstream's form. None reads the hub. Must be None for a world, whose problems are made.
        split: one of the splits of the source. None: train (test for math500, which has no other).
        size: number of problems, drawn at random. None: all.
        seed: seed of that draw.
        key: where the source stands in the config, for error messages. None: ``dataset.<source>``.
        options: further arguments of the source's loader (``repo``, ``revision``, ``drop_empty`` …).

    Returns:
        The columns problem, answer, level, subject, id, source.

    Raises:
        ConfigError: the source or split is unknown, or rows cannot be found or used.
        TypeError: the source does not have an option.
    """
    key = key or f"dataset.{source}"
    pool = load_pool(source, path=path, split=split, size=size, seed=seed, key=key, **options)
    return draw_problems(pool, size=size, seed=seed, key=key)


def load_pool(
    source: str, *, path: str | None, split: str | None, size: int | None, seed: int, key: str, **options: Any
) -> Dataset:
    """Load all problems of a source, before any draw. A world makes only as many as ``size`` asks for."""
    if size is not None and (type(size) is not int or size < 1):
        raise ConfigError(f"{key}.size", size, "must be a positive number of problems, or null for all")
    if source in list_worlds():
        if path is not None:
            raise ConfigError(f"{key}.path", path, f"must be null: {source} problems are made, not read")
        world = find_world(source, f"{key}.source")
        made = world.load(split or "train", size=size, seed=seed, key=key, **options)
        return made.select_columns(list(FEATURES)).cast(FEATURES)
    if source not in LOADERS:
        raise ConfigError(f"{key}.source", source, f"must be one of {', '.join([*LOADERS, *list_worlds()])}")
    return LOADERS[source](path=path, split=split, key=key, **options)


def draw_problems(
    pool: Dataset, *, size: int | None, seed: int, key: str, exclude: Collection[str] = frozenset()
) -> Dataset:
    """Draw problems at random, and return them in the order of the pool. If there are too few, take all and warn.

    The seed shuffles the whole pool, and the first ``size`` problems that are not excluded are taken. So exclusions
    change nothing but the excluded problems and those that take their places.

    Args:
        pool: the problems to draw from.
        size: how many to draw. None: all.
        seed: seed of the draw.
        key: where the source stands in the config, for the log.
        exclude: fingerprints of problems that must not be taken.
    """
    order = random.Random(seed).sample(range(len(pool)), len(pool))
    if exclude:
        texts = pool["problem"][:]
        order = [place for place in order if fingerprint(texts[place]) not in exclude]
        log.info("%s: %d problems left out because an evaluation set holds them", key, len(pool) - len(order))
    if size is not None:
        log.info("%s: %d of %d problems drawn with seed %d", key, min(size, len(order)), len(order), seed)
    if size is not None and size > len(order):
        log.warning("%s.size=%d: only %d problems are available; all are taken", key, size, len(order))
    return pool.select(sorted(order[:size]))
