"""The tables of cosines in the docs are what `python scripts/theory.py` prints."""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd
import pytest

from lens.commands.theory import profile_table, random_table
from lens.files import CONFIGS

RESULTS = (CONFIGS.parent / "docs" / "results.md").read_text()
LAST_DIGIT = 0.0101  # rounding on another processor may turn it


def shown(columns: list[str]) -> list[list[str]]:
    """The rows of the table in docs/results.md that has these columns."""
    (block,) = re.findall(rf"^{re.escape('| ' + ' | '.join(columns) + ' |')}\n\|[-:| ]+\n((?:\|.+\n)+)", RESULTS, re.M)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]


@pytest.mark.parametrize("make_table", [profile_table, random_table])
def test_a_table_of_cosines_is_what_the_command_prints(make_table: Callable[[], pd.DataFrame]):
    table = make_table()
    printed, rows = table.to_numpy().tolist(), shown(list(table.columns))
    assert len(rows) == len(printed)
    number = re.compile(r"-?\d+(?:\.\d+)?")
    for row, expected in zip(rows, printed, strict=True):
        assert [number.sub("n", cell) for cell in row] == [number.sub("n", cell) for cell in expected]
        numbers, those = ([float(n) for cell in cells for n in number.findall(cell)] for cells in (row, expected))
        assert numbers == pytest.approx(those, abs=LAST_DIGIT)
        assert float(row[list(table.columns).index("p")]) == float(expected[list(table.columns).index("p")])
