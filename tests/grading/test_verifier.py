"""The tables of docs/grading.md: where the judge differs from math-verify as it comes, and where it does not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lens.files import CONFIGS
from lens.grading.pool import Grader

# As it comes: with its defaults, and in a process where nobody repairs its percentages.
PLAIN = r"""
import json, sys
from math_verify import parse, verify
print(json.dumps([verify(parse(rf"\boxed{{{gold}}}"), parse(completion)) for gold, completion in json.load(sys.stdin)]))
"""


def rows(columns: int) -> list[list[str]]:
    """The rows of the table of verdicts with so many columns: the cells, without backticks."""
    lines = (CONFIGS.parent / "docs" / "grading.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    found = [row for row in cells if len(row) == columns and {*row[2:4]} & {"right", "wrong"} and row[1][0] == "`"]
    return [[row[0].strip("`"), row[1].strip("`"), *row[2:]] for row in found]


@pytest.mark.parametrize(("columns", "at_least"), [(5, 10), (4, 15)])
def test_the_tables_say_what_both_judges_say(grader: Grader, columns: int, at_least: int):
    table = rows(columns)
    assert len(table) >= at_least
    done = subprocess.run(
        [sys.executable, "-c", PLAIN],
        input=json.dumps([row[:2] for row in table]),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    plain = ["right" if right else "wrong" for right in json.loads(done.stdout)]
    grades = grader.grade([row[1] for row in table], [row[0] for row in table])
    ours = ["right" if grade.correct else "wrong" for grade in grades]
    assert plain == [row[2] for row in table]
    assert ours == [row[3 if columns == 5 else 2] for row in table]
