"""From the name of a source to its problems: the one list of what there is."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection
from typing import Any

from datasets import Dataset

from lens.errors import ConfigError
from lens.problems.dapo import load_dapo
from lens.problems.math import load_math, load_math500
from lens.problems.numina import load_numina
from lens.problems.problem import FEATURES, fingerprint

log = logging.getLogger(__name__)

LOADERS = {"math": load_math, "math500": load_math500, "dapo": load_dapo, "numina": load_numina}


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
    """The problems of one source: columns problem, answer, level, subject, id, source.

    Args:
        source: math, math500, dapo, numina or arithmetic.
        path: local file in upstream's form; None reads the hub. Arithmetic is made here and has neither.
        split: one of the splits of the source; None is train (test for math500, which has no other).
        size: number of problems, drawn at random; None takes all.
        seed: seed of that draw.
        key: where the source stands in the config, for error messages; None is ``dataset.<source>``.
        options: what the loader of the source takes besides (``repo``, ``revision``, ``drop_empty`` …).

    Raises:
        ConfigError: an unknown source or split, or rows that cannot be used or found.
        TypeError: an option that the source does not have.
    """
    key = key or f"dataset.{source}"
    pool = load_pool(source, path=path, split=split, size=size, seed=seed, key=key, **options)
    return draw_problems(pool, size=size, seed=seed, key=key)


def load_pool(
    source: str, *, path: str | None, split: str | None, size: int | None, seed: int, key: str, **options: Any
) -> Dataset:
    """All problems of a source, before any draw; arithmetic alone makes just as many as are wanted."""
    if size is not None and (type(size) is not int or size < 1):
        raise ConfigError(f"{key}.size", size, "must be a positive number of problems, or null for all")
    if source == "arithmetic":
        from lens.problems.worlds.arithmetic import load_arithmetic

        if path is not None:
            raise ConfigError(f"{key}.path", path, "must be null: arithmetic problems are made, not read")
        made = load_arithmetic(split or "train", size=size, seed=seed, key=key, **options)
        return made.select_columns(list(FEATURES)).cast(FEATURES)
    if source not in LOADERS:
        raise ConfigError(f"{key}.source", source, f"must be one of {', '.join([*LOADERS, 'arithmetic'])}")
    return LOADERS[source](path=path, split=split, key=key, **options)


def draw_problems(
    pool: Dataset, *, size: int | None, seed: int, key: str, exclude: Collection[str] = frozenset()
) -> Dataset:
    """A random choice of problems, in the order of the pool; all of them, with a warning, where they are too few.

    The seed puts the whole pool in order and the first ``size`` problems that may be taken are. So the choice with
    and without exclusions differs in the excluded problems and in those that take their places, and in nothing else.

    Args:
        pool: the problems to draw from.
        size: how many; None takes all.
        seed: seed of the draw.
        key: where the source stands in the config, for the log.
        exclude: fingerprints of problems that are not to be taken.
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
