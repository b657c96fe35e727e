"""Puzzles from a file: each is solved before it is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lens.errors import ConfigError
from lens.grading.verifiers.countdown import verify
from lens.problems import load_problems


@pytest.fixture
def puzzles(tmp_path):
    """A writer of files of puzzles."""

    def write(*rows: dict) -> Path:
        file = tmp_path / "puzzles.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


def test_puzzles_get_a_solution_as_their_gold_answer(puzzles):
    rows = [([3, 5, 8], 64), ([8, 3, 8, 3], 24), ([25, 4], 100), ([7, 7, 1, 3, 100], 4), ([2, 5], -3)]
    made = load_problems("countdown_file", path=str(puzzles(*({"numbers": n, "target": t} for n, t in rows))))
    assert made["problem"][0] == "Reach 64 from 3 , 5 , 8 , each used once . Enough are + - * / ."
    assert set(made["level"]) == {None}
    for (numbers, target), gold in zip(rows, made["answer"], strict=True):
        solution = gold.removeprefix("countdown://")
        assert sorted(map(int, re.findall(r"\d+", solution))) == sorted(numbers)
        assert verify(solution, f"{solution} = {target}" if target > 0 else solution) == "correct"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"numbers": [3, 5], "target": 24}, "no expression with each of [3, 5] once is 24"),
        ({"numbers": [1, 1, 1, 1], "target": 24}, "no expression with each of [1, 1, 1, 1] once is 24"),
        ({"numbers": [3], "target": 3}, "numbers is [3], not a list of 2 to 5 whole numbers in 1..999"),
        ({"numbers": [1, 2, 3, 4, 5, 6], "target": 3}, "numbers is [1, 2, 3, 4, 5, 6], not a list of 2 to 5"),
        ({"numbers": [3, 0], "target": 3}, "numbers is [3, 0], not a list"),
        ({"numbers": [3, True], "target": 3}, "numbers is [3, True], not a list"),
        ({"numbers": "3 5", "target": 8}, "numbers is '3 5', not a list"),
        ({"numbers": [3, 5], "target": 8.0}, "target is 8.0, not a whole number"),
        ({"numbers": [3, 5], "target": None}, "no value for target"),
    ],
)
def test_a_row_that_is_no_puzzle_is_refused_by_file_and_line(puzzles, row, says):
    file = puzzles({"numbers": [3, 5], "target": 8}, row)
    with pytest.raises(ConfigError) as error:
        load_problems("countdown_file", path=str(file))
    assert str(error.value).startswith(
        f"dataset.countdown_file.path={str(file)!r}: row 2 (puzzles.jsonl, line 2): {says}"
    )


def test_without_a_file_one_is_asked_for():
    with pytest.raises(ConfigError, match=r"dataset\.countdown_file\.path=None: must be a file of puzzles"):
        load_problems("countdown_file")
