"""Reads rows from JSON files. Each row is read by itself, so every value keeps the type that it has in the file.

``datasets`` gives each column one type, which it guesses from the first megabytes. Where a later row has another type,
it rewrites values of other rows, or fails without naming a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class JsonRows:
    """The rows of JSON files: a file holds a row on each line, or one list of rows.

    Args:
        files: the files, in the order of their rows.
    """

    files: Sequence[str]

    def batches(self, size: int) -> Iterator[list[Row]]:
        """Yield the rows, ``size`` at a time; the key ``b`` in an object ``a`` is the column ``a.b`` too.

        Raises:
            ValueError: a row cannot be read. The message names file and line.
        """
        rows = (flatten_row(row) for _, row in self._read())
        while batch := list(islice(rows, size)):
            yield batch

    def locate(self, number: int) -> str:
        """Return where a row stands, such as ``rows.jsonl, line 7``. Numbers count from 1, over all files."""
        place, _ = next(islice(self._read(), number - 1, None))
        return place

    def _read(self) -> Iterator[tuple[str, Row]]:
        """Yield each row with the place where it stands."""
        for file in self.files:
            with open(file, encoding="utf-8-sig") as lines:
                listed = lines.read(1) == "["
                lines.seek(0)
                if listed:
                    places = ((f"item {n}", row) for n, row in enumerate(parse_json(lines.read(), file), start=1))
                else:
                    filled = ((n, line) for n, line in enumerate(lines, start=1) if line.strip())
                    places = ((f"line {n}", parse_json(line, f"{file}, line {n}")) for n, line in filled)
                for place, row in places:
                    if not isinstance(row, dict):
                        raise ValueError(f"{Path(file).name}, {place} is not an object with columns")
                    yield f"{Path(file).name}, {place}", row


def parse_json(text: str, place: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the text is no JSON. The message starts with the place.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error).replace("line 1 column", "column")  # lines are counted in the text, not in the file
        raise ValueError(f"{Path(place).name}: {reason}") from None


def flatten_row(row: Row) -> Row:
    """Return a row with the keys of its nested objects as dotted columns too, one level deep, as Arrow names them."""
    nested = ((key, value) for key, value in row.items() if isinstance(value, dict))
    return row | {f"{key}.{name}": inner for key, value in nested for name, inner in value.items()}
