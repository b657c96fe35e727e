"""Loads puzzles of one's own in the form of countdown: numbers and a target, a row each.

Each puzzle is solved first, by all expressions with exact fractions, and one without a solution is refused. So every
gold answer is a solution. The text is that of lens/problems/worlds/countdown.py, and so is the verifier.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from fractions import Fraction

from datasets import Dataset

from lens.errors import ConfigError
from lens.problems.problem import Problem, collect
from lens.problems.upstream import read_upstream
from lens.problems.worlds.countdown import write_text

COLUMNS = ("numbers", "target")
MOST_NUMBERS, LARGEST = 5, 999
COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def load_countdown_file(
    *, path: str | None = None, split: str | None = None, key: str = "dataset.countdown_file"
) -> Dataset:
    """Load puzzles from a file. They have no levels.

    Args:
        path: a JSONL, JSON or Parquet file with the columns numbers (2 to 5 whole numbers in 1..999) and target.
        split: train, whatever the file is for.
        key: where this source stands in the config, for error messages.

    Raises:
        ConfigError: there is no file, or a row is no puzzle or has no solution; the message names file and row.
    """
    if path is None:
        raise ConfigError(f"{key}.path", None, f"must be a file of puzzles, with the columns {', '.join(COLUMNS)}")
    upstream = read_upstream(
        "countdown_file",
        path=path,
        split=split,
        repo="",
        revision="",
        streaming=False,
        key=key,
        splits=("train",),
        columns=COLUMNS,
    )
    return collect(upstream, make_problem, drop_empty=False)


def make_problem(row: dict) -> Problem:
    """Make a problem of a row.

    Raises:
        ValueError: it is no puzzle, or has no solution.
    """
    numbers, target = row["numbers"], row["target"]
    if not isinstance(numbers, list) or not 2 <= len(numbers) <= MOST_NUMBERS or not all(map(is_number, numbers)):
        raise ValueError(f"numbers is {numbers!r}, not a list of 2 to {MOST_NUMBERS} whole numbers in 1..{LARGEST}")
    if type(target) is not int:
        raise ValueError(f"target is {target!r}, not a whole number")
    solution = find_solution([(Fraction(number), str(number)) for number in numbers], target)
    if solution is None:
        raise ValueError(f"no expression with each of {numbers} once is {target}")
    text = write_text(numbers, target, "+-*/")
    return Problem(text, f"countdown://{solution}", subject=f"{len(numbers)} numbers")


def is_number(value: object) -> bool:
    """Return whether a value may be one of the numbers of a puzzle."""
    return type(value) is int and 1 <= value <= LARGEST


def find_solution(parts: Sequence[tuple[Fraction, str]], target: int) -> str | None:
    """Return an expression that joins all parts, each a value and its text, to the target; None if there is none."""
    if len(parts) == 1:
        (value, text), *_ = parts
        return text if value == target else None
    for i, j in itertools.permutations(range(len(parts)), 2):
        (left, x), (right, y) = parts[i], parts[j]
        rest = [part for place, part in enumerate(parts) if place not in (i, j)]
        for sign, apply in COMPUTE.items():
            if (sign in "+*" and i > j) or (sign == "/" and right == 0):
                continue  # the same the other way round, or nothing
            solution = find_solution([*rest, (apply(left, right), f"( {x} {sign} {y} )")], target)
            if solution is not None:
                return solution
    return None
