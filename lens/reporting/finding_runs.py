"""Finds and loads the finished runs below some folders, and groups them into arms."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lens.errors import ConfigError
from lens.reporting.arms import Arm, group_into_arms
from lens.reporting.comparability import (
    check_arm,
    check_evaluations,
    check_problems,
    note_missing_seeds,
    note_other_experiments,
    note_separate_setting,
)
from lens.runs.run import explain_unfinished, load_run

NOT_RUNS = ("report", "wandb")  # folders that this package and W&B make beside runs


def find_run_folders(folder: Path, seen: set[str]) -> Iterator[Path | str]:
    """Yield the run folders below a folder, and a line for each empty folder.

    It follows links, but visits no folder twice.
    """
    if (real := os.path.realpath(folder)) in seen or not folder.is_dir():
        return
    seen.add(real)
    if (folder / ".hydra").is_dir():
        yield folder
        return
    entries = sorted(folder.iterdir())
    if not entries:
        yield f"{folder}: empty"
    for entry in entries:
        if entry.is_dir() and entry.name not in NOT_RUNS and not entry.name.startswith("."):
            yield from find_run_folders(entry, seen)


def load_arms(folders: Sequence[Path]) -> tuple[list[Arm], list[str]]:
    """Load the finished runs below some folders, and return their arms, and a line for each oddity.

    Arms of one setting are neighbours; the setting with the most runs comes first.

    Raises:
        ConfigError: there is no finished run; an arm has two configs or a seed twice; the runs of a setting have
            different problems; or the runs of an experiment have different evaluations.
    """
    runs, oddities = [], []
    where = ", ".join(map(str, folders))
    for folder in folders:
        if not folder.is_dir():
            oddities.append(f"{folder}: no such folder")
        for found in find_run_folders(folder, set()):
            if isinstance(found, str):
                oddities.append(found)
            elif (found / "evaluation.parquet").exists():  # left by scripts/evaluate.py
                continue
            elif (reason := explain_unfinished(found)) is not None:
                oddities.append(f"{found}: {reason}, left out")
            else:
                try:
                    runs.append(load_run(found))
                except (OSError, ValueError, KeyError, IndexError, YAMLError, OmegaConfBaseException) as error:
                    told = " ".join(str(error).split())[:200]
                    oddities.append(f"{found}: cannot be read ({type(error).__name__}: {told}), left out")
    if not runs:
        seen = f"; found: {'; '.join(oddities)}" if oddities else ""
        raise ConfigError("runs", where, f"must be a folder with finished runs (each has a summary.json){seen}")
    check_evaluations(runs, where)
    settings = Counter(run.setting for run in runs)
    arms = [
        arm
        for setting, _ in settings.most_common()
        for arm in group_into_arms([r for r in runs if r.setting == setting])
    ]
    for arm in arms:
        check_arm(arm)
    for setting in settings:
        members = [arm for arm in arms if arm.setting == setting]
        check_problems(members, where)
        oddities += note_other_experiments(members) + note_missing_seeds(members)
    if len(settings) > 1:
        oddities += [note_separate_setting(arms, setting) for setting, _ in settings.most_common()[1:]]
    return arms, oddities
