"""Makes problems with reasoning-gym: a hundred kinds of puzzles, its *tasks*, each with its own generator and verifier.

Source: Stojanovski et al. 2025, "Reasoning Gym: Reasoning Environments for Reinforcement Learning with Verifiable
Rewards" (arXiv:2505.24760); the package reasoning-gym.

**Levels.** A task has a curriculum: settings, such as the number of terms, that grow together in steps. The steps are
spread over Levels 1 to 5, from the first, Level 1, to the last, Level 5. Where the curriculum gives a range, a level
has its upper end alone, so that levels do not contain each other. A task with fewer than five steps lacks some levels.

**Splits.** A problem's text alone decides its split, so no text is in two of them, whatever seed and size.

**Verifiers.** The gold answer holds what the task's own verifier needs (lens/grading/verifiers/reasoning_gym.py).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from ast import literal_eval
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import islice
from typing import Any

from datasets import Dataset

from lens.errors import ConfigError
from lens.problems.problem import FEATURES, Problem, fingerprint

PACKAGE = "reasoning-gym"
LEVELS = (1, 2, 3, 4, 5)
SPLIT_SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
PATIENCE = 20  # draws for each problem that is wanted of a split, before a level counts as exhausted

RUNS_CODE = "its verifier runs an answer as Python code"
NO_ANSWER = "it gives no right answer to hold its verifier against"
# Tasks that cannot be used, and why. A slow test finds the same by trying all.
UNUSABLE = {
    **dict.fromkeys(("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"), RUNS_CODE),
    **dict.fromkeys(("intermediate_integration", "polynomial_multiplication", "simple_integration"), RUNS_CODE),
    **dict.fromkeys(("countdown", "puzzle24"), RUNS_CODE),
    **dict.fromkeys(("boxnet", "graph_color"), NO_ANSWER),
    **dict.fromkeys(("acre", "composite", "gsm_symbolic", "list_functions"), "it has no curriculum, so no levels"),
    "codeio": "what its verifier needs cannot be stored",
    "game_of_life_halting": "its verifier calls any answer right",
}


@dataclass(frozen=True)
class Task:
    """A task, with the settings of each level that it has.

    Attributes:
        name: its name in the package.
        make: makes a generator of problems from settings.
        settings: by level, the package's settings object.
    """

    name: str
    make: Callable[[Any], Any]
    settings: dict[int, Any]


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
    time_limit_s: float = 30.0,
    key: str = "dataset.reasoning_gym",
) -> Dataset:
    """Make problems of some tasks, equally many of each task and level. The column ``subject`` is the task.

    Args:
        tasks: names of tasks.
        version: the package's version. Another one may make other problems, so it must be the installed one.
        path: must be None, as nothing is read.
        split: train (default), validation or test. They share no text.
        per_level: number of problems of each task and level.
        levels: the levels to make. None: those that each task has.
        steps: the steps of the curriculum, counted from 0, that are Levels 1, 2, and so on. None: spread evenly.
        item_seed: the seed of the generators.
        time_limit_s: processor time that the problems of one task may take, in seconds.
        key: where this source stands in the config, for error messages.

    Raises:
        ConfigError: the package is missing or of another version, a task is unknown or cannot be used, lacks a level,
            takes too long, or has too few different problems.
    """
    split = split or "train"
    if path is not None:
        raise ConfigError(f"{key}.path", path, "must be null: these problems are made, not read")
    if split not in SPLIT_SHARES:
        raise ConfigError(f"{key}.split", split, f"must be one of {', '.join(SPLIT_SHARES)}")
    if type(per_level) is not int or per_level < 1:
        raise ConfigError(f"{key}.per_level", per_level, "must be an integer >= 1")
    if type(item_seed) is not int:
        raise ConfigError(f"{key}.item_seed", item_seed, "must be a whole number")
    check_version(version, key)
    names = check_tasks(tasks, key)
    chosen = [find_task(name, levels, steps, key) for name in names]
    problems = []
    for task in chosen:
        deadline = time.process_time() + time_limit_s
        seen: set[str] = set()
        for level in task.settings:
            made = make_problems(task, level, split, item_seed, seen, draws=PATIENCE * per_level, deadline=deadline)
            try:
                found = list(islice(made, per_level))
            except Exception as error:  # the package's generators fail in ways that nobody can list
                raise ConfigError(f"{key}.tasks", task.name, f"fails at Level {level}: {error!r}") from error
            if len(found) < per_level and time.process_time() > deadline:
                valid = f"is not enough for {per_level} problems of Level {level} of {task.name}, {split}; "
                raise ConfigError(f"{key}.time_limit_s", time_limit_s, valid + "ask for fewer, or leave the task out")
            if len(found) < per_level:
                valid = f"must be at most {len(found)}: Level {level} of {task.name} has no more in split {split}"
                raise ConfigError(f"{key}.per_level", per_level, valid)
            problems += found
    rows = [vars(problem) | {"source": "reasoning_gym"} for problem in problems]
    return Dataset.from_dict({column: [row[column] for row in rows] for column in FEATURES}, features=FEATURES)


def check_version(version: str, key: str) -> None:
    """Refuse a version of the package that is not the installed one.

    Raises:
        ConfigError: it is not, or none is installed.
    """
    try:
        installed = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        valid = f"needs the package {PACKAGE}: make setup, or pip install --constraint constraints.txt -e '.[gym]'"
        raise ConfigError(f"{key}.source", "reasoning_gym", valid) from error
    if version != installed:
        valid = f"must be {installed}, which is installed: another version may make other problems"
        raise ConfigError(f"{key}.version", version, valid)


def check_tasks(tasks: Sequence[str], key: str) -> list[str]:
    """Return the tasks.

    Raises:
        ConfigError: there is none, or one occurs twice, is unknown or cannot be used.
    """
    from reasoning_gym.factory import DATASETS

    usable = sorted(set(DATASETS) - set(UNUSABLE))
    if isinstance(tasks, str) or not tasks or len(set(tasks)) != len(tasks):
        raise ConfigError(f"{key}.tasks", tasks if isinstance(tasks, str) else list(tasks), "must be different tasks")
    for name in tasks:
        if name in UNUSABLE:
            raise ConfigError(f"{key}.tasks", name, f"cannot be used: {UNUSABLE[name]}")
        if name not in usable:
            close = get_close_matches(str(name), usable, n=3) or usable
            raise ConfigError(f"{key}.tasks", name, f"is no task of {PACKAGE}; close names: {', '.join(close)}")
    return list(tasks)


def find_task(name: str, levels: Sequence[int] | None, steps: Sequence[int] | None, key: str) -> Task:
    """Return a task with the settings of the levels that are asked for.

    Raises:
        ConfigError: it lacks a level or a step.
    """
    from reasoning_gym.factory import DATASETS

    curriculum = list_steps(name)
    if steps is None:
        known = spread_steps(len(curriculum))
    else:
        known = dict(zip(LEVELS, steps, strict=False))
        if not 0 < len(steps) <= len(LEVELS) or any(step not in range(len(curriculum)) for step in steps):
            valid = f"must be up to five numbers from 0 to {len(curriculum) - 1}, the steps of {name}'s curriculum"
            raise ConfigError(f"{key}.steps", list(steps), valid)
    levels = list(known) if levels is None else list(levels)
    if not levels or not set(levels) <= set(known) or len(set(levels)) != len(levels):
        has = ", ".join(map(str, known))
        valid = f"must be different levels that {name} has: {has} (its curriculum has {len(curriculum)} steps)"
        raise ConfigError(f"{key}.levels", levels, valid)
    return Task(name, DATASETS[name][0], {level: curriculum[known[level]] for level in sorted(levels)})


def list_steps(name: str) -> list[Any]:
    """Return the different settings that a task's curriculum goes through, without those that the task refuses."""
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
    from reasoning_gym.factory import CURRICULA

    curriculum, found = CURRICULA[name](), []
    upper_end = DefaultCurriculumContext(RangeAttributeMode.UPPER_BOUND)
    for step in range(max(len(attribute.levels) for attribute in curriculum.attributes.values())):
        curriculum.set_global_level(step)
        settings = curriculum.generate_configuration(context=upper_end)
        try:
            settings.validate()
        except (AssertionError, ValueError):  # so the package refuses what its own curricula set wrong in places
            continue
        if settings not in found:
            found.append(settings)
    return found


def spread_steps(number: int) -> dict[int, int]:
    """Return the step of each level, for a curriculum of so many steps: the first is Level 1, the last Level 5.

    Of more than five steps, some have no level. Of fewer, some levels have no step.
    """
    last = number - 1
    if number >= len(LEVELS):
        return {level: round((level - 1) * last / 4) for level in LEVELS}
    return {1 + round(4 * step / max(last, 1)): step for step in range(number)}


def make_problems(
    task: Task, level: int, split: str, item_seed: int, seen: set[str], *, draws: int, deadline: float
) -> Iterator[Problem]:
    """Yield different problems of a level and a split.

    Args:
        task, level, split: what to make.
        item_seed: the seed of the generators.
        seen: the texts that have come, without white space; those of the new problems are added.
        draws: how many problems of this split to make at most, with repetitions.
        deadline: the processor time of this process at which to stop, in seconds.
    """
    draws = int(draws / SPLIT_SHARES[split])
    settings = task.settings[level]
    settings.size = draws
    # The package adds the number of a problem to the seed, so seeds must lie far apart.
    settings.seed = int.from_bytes(hashlib.sha256(f"{item_seed} {task.name} {level}".encode()).digest()[:4], "big")
    generator = task.make(config=settings)
    changed = changed_settings(settings)
    for number in range(draws):
        if time.process_time() > deadline:
            return
        item = generator[number]
        text = fingerprint(item["question"])
        if text in seen or split_of(text) != split:
            continue
        seen.add(text)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        yield Problem(
            problem=item["question"],
            answer=write_gold(task.name, changed, item),
            level=level,
            subject=task.name,
            id=f"reasoning_gym/{task.name}/{digest}",
        )


def split_of(text: str) -> str:
    """Return the split of a text. It is the same on every machine, for every seed and size."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    for split, share in SPLIT_SHARES.items():
        if place < share:
            return split
        place -= share
    return split


def changed_settings(settings: Any) -> dict[str, Any]:
    """Return the settings that differ from the task's defaults, without seed and size: some verifiers look at them."""
    plain = type(settings)()
    pairs = {field.name: (getattr(settings, field.name), getattr(plain, field.name)) for field in fields(settings)}
    return {name: now for name, (now, then) in pairs.items() if name not in ("seed", "size") and now != then}


def write_gold(task: str, settings: dict[str, Any], item: dict[str, Any]) -> str:
    """Return a gold answer of lens/grading/verifiers/: the package's answer, and in its data what the verifier needs.

    Raises:
        ValueError: this cannot be written down as plain values.
    """
    kept = {"task": task, "settings": settings, "metadata": item["metadata"]}
    data = repr(kept)
    if literal_eval(data) != kept:
        raise ValueError(f"what the verifier of {task} needs cannot be stored")
    return f"reasoning_gym://{item['answer']}\n//{data}"
