"""Chooses among the problems of a source: by level, and by what a model solved in an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from datasets import Dataset

from lens.errors import ConfigError

log = logging.getLogger(__name__)

EVALUATION = "evaluation.parquet"  # what scripts/evaluate.py writes


def choose_problems(problems: Dataset, levels: Sequence[int] | None, solved_in: str | None, key: str) -> Dataset:
    """Keep the problems of some levels, and those that a model solved sometimes; log how many are left.

    Args:
        problems: problems with the columns id and level.
        levels: the levels to keep. None: all, and problems without a level.
        solved_in: the folder of an evaluation of these problems. Those with right and wrong answers stay. None: all.
        key: where the source stands in the config, for error messages.

    Raises:
        ConfigError: there is no such level or evaluation, or no problem is left.
    """
    if levels is not None:
        known = sorted({level for level in problems["level"] if level is not None})
        if not levels or not set(levels) <= set(known):
            valid = f"must be null, or levels out of those of its problems: {', '.join(map(str, known))}"
            raise ConfigError(f"{key}.levels", list(levels), valid)
        problems = keep(problems, [level in levels for level in problems["level"]], f"of levels {list(levels)}", key)
    if solved_in is not None:
        solved = find_sometimes_solved(solved_in, f"{key}.solved_in")
        problems = keep(problems, [name in solved for name in problems["id"]], f"solved sometimes in {solved_in}", key)
        if not len(problems):
            raise ConfigError(f"{key}.solved_in", solved_in, "must be an evaluation with problems solved sometimes")
    return problems


def keep(problems: Dataset, chosen: Sequence[bool], why: str, key: str) -> Dataset:
    """Return the chosen problems, and log how many they are and why."""
    places = [place for place, is_chosen in enumerate(chosen) if is_chosen]
    log.info("%s: %s of %s problems are %s", key, f"{len(places):,}", f"{len(problems):,}", why)
    return problems.select(places)


def find_sometimes_solved(folder: str, key: str) -> set[str]:
    """Return the ids of problems with right and wrong answers in an evaluation.

    Args:
        folder: the evaluation's folder, or its parquet file.
        key: the config key that names it.

    Raises:
        ConfigError: there is no such file, or it is none of an evaluation.
    """
    file = Path(folder) / EVALUATION if Path(folder).is_dir() else Path(folder)
    try:
        table = pd.read_parquet(file, columns=["id", "n", "correct"])
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(key, folder, f"must be the folder of an evaluation, with {EVALUATION} ({reason})") from error
    return set(table.loc[(table["correct"] > 0) & (table["correct"] < table["n"]), "id"])
