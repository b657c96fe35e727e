"""Makes problems with reasoning-gym: a hundred kinds of puzzles, its *tasks*, each with its own generator and verifier.

Source: Stojanovski et al. 2025, "Reasoning Gym: Reasoning Environments for Reinforcement Learning with Verifiable
Rewards" (arXiv:2505.24760); the package reasoning-gym.

**Levels.** A task has a curriculum: settings, such as the number of terms, that grow together in steps. The steps are
spread over Levels 1 to 5, from the first, Level 1, to the last, Level 5. A task with fewer than five steps lacks some
levels.

**Splits.** A problem's text alone decides its split, so no text is in two of them, whatever seed and size.

**Verifiers.** The gold answer holds what the task's own verifier needs (lens/grading/verifiers/reasoning_gym.py).
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from lens.errors import ConfigError
from lens.problems import reasoning_gym_maker as maker
from lens.problems.problem import FEATURES

log = logging.getLogger(__name__)

PACKAGE = "reasoning-gym"
INSTALL = "pip install --constraint constraints.txt --editable '.[gym]'"


def load_reasoning_gym(
    *,
    tasks: Sequence[str],
    version: str,
    path: None = None,
    split: str | None = None,
    per_level: int = 200,
    levels: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    item_seed: int = 0,
    time_limit_s: float = 30,
    key: str = "dataset.reasoning_gym",
) -> Dataset:
    """Make problems of some tasks, equally many of each task and level. The column ``subject`` is the task.

    Args:
        tasks: names of tasks.
        version: the package's version. Another one may make other problems, so it must be the installed one.
        path: must be None, as nothing is read.
        split: train (default), validation or test. They share no text.
        per_level: number of problems of each task and level. Where a level does not have as many, a warning says so.
        levels: the levels to make. None: those that each task has.
        steps: the steps of the curriculum, counted from 0, that are Levels 1, 2, and so on. None: spread evenly.
        item_seed: the seed of the generators.
        time_limit_s: processor time that the problems of one task may take, in seconds.
        key: where this source stands in the config, for error messages.

    Raises:
        ConfigError: the package is missing or of another version; or a task is unknown or cannot be used, lacks a
            level, takes too long or fails.
    """
    split = split or "train"
    if path is not None:
        raise ConfigError(f"{key}.path", path, "must be null: these problems are made, not read")
    if split not in maker.SPLIT_SHARES:
        raise ConfigError(f"{key}.split", split, f"must be one of {', '.join(maker.SPLIT_SHARES)}")
    if isinstance(tasks, str) or not tasks or len(set(tasks)) != len(tasks):
        raise ConfigError(f"{key}.tasks", tasks if isinstance(tasks, str) else list(tasks), "must be different tasks")
    if type(per_level) is not int or per_level < 1:
        raise ConfigError(f"{key}.per_level", per_level, "must be an integer >= 1")
    if type(item_seed) is not int:
        raise ConfigError(f"{key}.item_seed", item_seed, "must be a whole number")
    if isinstance(time_limit_s, bool) or not isinstance(time_limit_s, int | float) or not 0 < time_limit_s < 1e6:
        raise ConfigError(f"{key}.time_limit_s", time_limit_s, "must be a number of seconds above 0")
    check_version(version, key)
    chosen = {name: value if value is None else list(value) for name, value in (("levels", levels), ("steps", steps))}
    request = {"tasks": list(tasks), "split": split, "per_level": per_level, "item_seed": item_seed, **chosen}
    rows = run_maker(request | {"time_limit_s": time_limit_s}, key)
    for (task, level), number in Counter((row["subject"], row["level"]) for row in rows).items():
        if number < per_level:
            message = "%s.per_level=%d: Level %d of %s has only %d different problems in split %s; all are taken"
            log.warning(message, key, per_level, level, task, number, split)
    return Dataset.from_dict({column: [row[column] for row in rows] for column in FEATURES}, features=FEATURES)


def find_version() -> str | None:
    """Return the installed version of the package, or None."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_version(version: str, key: str) -> None:
    """Refuse a version of the package that is not the installed one.

    Raises:
        ConfigError: it is not, or none is installed.
    """
    installed = find_version()
    if installed is None:
        raise ConfigError(f"{key}.source", "reasoning_gym", f"needs the package {PACKAGE}: {INSTALL}")
    if version != installed:
        valid = f"must be {installed}, which is installed: another version may make other problems"
        raise ConfigError(f"{key}.version", version, valid)


def run_maker(request: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Have reasoning_gym_maker.py make problems in a process of its own, and return them as rows.

    Raises:
        ConfigError: it refuses the request, fails, or takes too long.
    """
    done = subprocess.run(
        [sys.executable, "-P", maker.__file__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONHASHSEED": "0"},
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.endswith("}")]
    at = next((answer["at"] for answer in reversed(answers) if "at" in answer), "the first task")
    if done.returncode == -signal.SIGPROF:
        valid = f"is too short for {request['per_level']} problems of {at} ({request['split']})"
        raise ConfigError(f"{key}.time_limit_s", request["time_limit_s"], f"{valid}: ask for fewer, or leave it out")
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(f"{key}.tasks", request["tasks"], f"the package fails at {at}: {reason}")
    if answers and "refused" in answers[-1]:
        name, value, valid = answers[-1]["refused"]
        raise ConfigError(f"{key}.{name}", value, valid)
    return [answer for answer in answers if "at" not in answer]
