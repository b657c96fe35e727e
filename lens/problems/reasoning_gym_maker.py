"""Makes problems with reasoning-gym, in a process of its own: python -P reasoning_gym_maker.py < request > answers.

The generators are the package's code. Some never end, some draw from Python's own random numbers or depend on the order
of its sets. So lens/problems/reasoning_gym.py starts this file with a fixed hash seed, and the kernel ends it once a
task has taken too much processor time. It imports nothing of lens.

The request is an object with the arguments of `answer`. Each answer is an object on a line of its own: ``at`` says what
comes next, ``refused`` which key, value and reason end the work, and anything else is a problem.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from ast import literal_eval
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

LEVELS = (1, 2, 3, 4, 5)
SPLIT_SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
PATIENCE = 20  # draws for each problem that is wanted of a split, before a level counts as exhausted

RUNS_CODE = "its verifier runs an answer as Python code"
NO_ANSWER = "it gives no right answer to hold its verifier against"
NO_CURRICULUM = "it has no curriculum, so no levels"
UNUSABLE = {
    **dict.fromkeys(("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"), RUNS_CODE),
    **dict.fromkeys(("intermediate_integration", "polynomial_multiplication", "simple_integration"), RUNS_CODE),
    **dict.fromkeys(("countdown", "puzzle24"), RUNS_CODE),
    **dict.fromkeys(("boxnet", "graph_color"), NO_ANSWER),
    **dict.fromkeys(("acre", "composite", "gsm_symbolic", "list_functions"), NO_CURRICULUM),
    "codeio": "what its verifier needs cannot be stored",
    "coin_flip": "its verifier calls 0.55 right where 0.5 is",
    "game_of_life_halting": "its verifier calls any answer right",
}


class Refused(Exception):  # noqa: N818 (no error here: the parent makes one of it)
    """Says which key, value and reason end the work."""


def answer(
    *,
    tasks: list[str],
    split: str,
    per_level: int,
    levels: list[int] | None,
    steps: list[int] | None,
    item_seed: int,
    time_limit_s: float,
    settings: dict[str, list[dict[str, Any]]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the answers to a request; `load_reasoning_gym` explains the arguments.

    With ``settings``, the levels of a task are its settings there, from Level 1 on, instead of steps of its curriculum.

    Raises:
        Refused: a task is unknown or cannot be used, or lacks a level, a step or a problem of the split.
    """
    check_tasks(tasks)
    for task in tasks:
        signal.setitimer(signal.ITIMER_PROF, time_limit_s)
        yield {"at": task}
        seen: set[str] = set()
        chosen = find_levels(task, levels, steps) if settings is None else make_levels(task, settings[task])
        for level, of_level in chosen.items():
            yield {"at": f"{task}, Level {level}"}
            found = 0
            for problem in make_problems(task, level, of_level, split, item_seed, PATIENCE * per_level, seen):
                yield problem
                if (found := found + 1) == per_level:
                    break
            if not found:
                raise Refused("tasks", task, f"has no problem of Level {level} in split {split}: leave one of them out")


def check_tasks(tasks: list[str]) -> None:
    """Refuse a task that is unknown or cannot be used."""
    from reasoning_gym.factory import DATASETS

    usable = sorted(set(DATASETS) - set(UNUSABLE))
    for task in tasks:
        if task in UNUSABLE:
            raise Refused("tasks", task, f"cannot be used: {UNUSABLE[task]}")
        if task not in usable:
            names = get_close_matches(str(task), usable, n=3) or usable
            raise Refused("tasks", task, f"is no task of reasoning-gym; close names: {', '.join(names)}")


def find_levels(task: str, levels: list[int] | None, steps: list[int] | None) -> dict[int, Any]:
    """Return the settings of the levels that are asked for, None for all that the task has."""
    curriculum = list_steps(task)
    if steps is not None and (not steps or len(steps) > len(LEVELS) or not set(steps) <= set(range(len(curriculum)))):
        has = f"must be up to five numbers from 0 to {len(curriculum) - 1}, the steps of {task}'s curriculum"
        raise Refused("steps", steps, has)
    known = spread_steps(len(curriculum)) if steps is None else dict(zip(LEVELS, steps, strict=False))
    wanted = list(known) if levels is None else levels
    if not wanted or not set(wanted) <= set(known) or len(set(wanted)) != len(wanted):
        has = ", ".join(map(str, known))
        reason = f"must be different levels that {task} has: {has} (its curriculum has {len(curriculum)} steps)"
        raise Refused("levels", wanted, reason)
    return {level: curriculum[known[level]] for level in sorted(wanted)}


def make_levels(task: str, values: list[dict[str, Any]]) -> dict[int, Any]:
    """Return a task's settings, from Level 1 on."""
    from reasoning_gym.factory import DATASETS

    return {level: DATASETS[task][1](**of_level) for level, of_level in enumerate(values, start=1)}


def list_steps(task: str) -> list[Any]:
    """Return the different settings that a task's curriculum goes through.

    Where the curriculum gives a range, a step has its upper end alone, so that steps do not contain each other. Some
    steps cannot be taken: the task refuses its own curriculum's settings, or finds no problem with them. They are left
    out.
    """
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
    from reasoning_gym.factory import CURRICULA, DATASETS

    curriculum, found = CURRICULA[task](), []
    upper_end = DefaultCurriculumContext(RangeAttributeMode.UPPER_BOUND)
    for step in range(max(len(attribute.levels) for attribute in curriculum.attributes.values())):
        curriculum.set_global_level(step)
        settings = curriculum.generate_configuration({"seed": 0}, context=upper_end)
        if settings in found:
            continue
        with suppress(Exception):  # the generators fail in ways that nobody can list
            DATASETS[task][0](config=settings)[0]
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
    task: str, level: int, settings: Any, split: str, item_seed: int, patience: int, seen: set[str]
) -> Iterator[dict[str, Any]]:
    """Yield different problems of a level and a split, as long as ``patience`` draws from the split go.

    ``seen`` holds the texts that have come, without white space; those of the new problems are added.
    """
    from reasoning_gym.factory import DATASETS

    # The package adds the number of a problem to the seed, so seeds must lie far apart.
    settings.seed = int.from_bytes(hashlib.sha256(f"{item_seed} {task} {level}".encode()).digest()[:4], "big")
    settings.size = int(patience / SPLIT_SHARES[split])
    generator, changed = DATASETS[task][0](config=settings), changed_settings(settings)
    for number in range(settings.size):
        item = generator[number]
        text = "".join(item["question"].split())
        if text in seen or split_of(text) != split:
            continue
        seen.add(text)
        yield {
            "problem": item["question"],
            "answer": write_gold(task, changed, item),
            "level": level,
            "subject": task,
            "id": f"reasoning_gym/{task}/{hashlib.sha256(text.encode()).hexdigest()[:16]}",
            "source": "reasoning_gym",
        }


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
    """Return a gold answer (lens/grading/verifiers/): the package's answer, and in its data what the verifier needs.

    Raises:
        Refused: this cannot be written down as plain values.
    """
    kept = {"task": task, "settings": settings, "metadata": item["metadata"]}
    with suppress(ValueError, SyntaxError):
        if literal_eval(data := repr(kept)) == kept and isinstance(item["answer"], str):
            return f"reasoning_gym://{item['answer']}\n//{data}"
    raise Refused("tasks", task, "cannot be used: what its verifier needs cannot be stored")


def main() -> None:
    """Answer the request on stdin."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what the package prints is no answer
        try:
            for found in answer(**json.load(sys.stdin)):
                print(json.dumps(found), file=answers, flush="at" in found)
        except Refused as refused:
            print(json.dumps({"refused": refused.args}), file=answers)


if __name__ == "__main__":
    main()
