"""Defines the one schema of all problems, and converts the rows of any source to it.

A source module reads rows in upstream's own form and says how a row becomes a `Problem`. `collect` does the rest for
all sources: it checks each problem, counts what is dropped and why, and builds the dataset.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, Value

from lens.problems.upstream import Upstream

log = logging.getLogger(__name__)

FEATURES = Features(
    problem=Value("string"),
    answer=Value("string"),
    level=Value("int64"),  # 1 (easy) to 5 (hard), or null
    subject=Value("string"),  # or null
    id=Value("string"),  # unique, and the same on every machine
    source=Value("string"),
)


@dataclass
class Problem:
    """A problem before it enters the dataset. `collect` replaces an ``id`` of None by a hash of the problem's text."""

    problem: str
    answer: str
    level: int | None = None
    subject: str | None = None
    id: str | None = None


class Dropped(Exception):  # noqa: N818 (no error: the configuration wants it so)
    """Raised for a row that the configuration leaves out. Its message is the reason that the row is counted under."""


def fingerprint(text: str) -> str:
    """Return a text without any white space. Two texts with the same fingerprint state the same problem."""
    return "".join(text.split())


def hash_text(source: str, text: str) -> str:
    """Return the id that a problem of a source gets from its text."""
    return f"{source}/{hashlib.sha256(fingerprint(text).encode()).hexdigest()[:16]}"


def parse_level(value: Any) -> int | None:
    """Return the level as a number: 5 for 5 and for "Level 5", None for the "Level ?" of a few MATH rows.

    Raises:
        ValueError: the value is anything else.
    """
    if value == "Level ?":
        return None
    named = re.fullmatch(r"Level (\d+)", value) if isinstance(value, str) else None
    level = int(named[1]) if named else value
    if type(level) is not int or not 1 <= level <= 5:
        raise ValueError(f'level is {value!r}, not 1 to 5 or "Level 1" to "Level 5" (or "Level ?", which becomes null)')
    return level


def collect(
    upstream: Upstream,
    convert: Callable[[dict[str, Any]], Problem],
    *,
    drop_empty: bool,
    rows: Iterable[tuple[int, dict[str, Any]]] | None = None,
    nullable: Collection[str] = (),
    dropped: Mapping[str, int] | None = None,
    notes: Mapping[str, Callable[[Problem], bool]] | None = None,
) -> Dataset:
    """Convert the rows of one source to problems, and log how many rows were read, dropped (and why) and kept.

    Args:
        upstream: the rows; they also know their file, for error messages.
        convert: makes a `Problem` of a row. It raises `Dropped` to leave the row out, and ValueError if it is broken.
        drop_empty: leave out and count rows whose problem or answer is empty. Otherwise they are refused.
        rows: upstream's rows, with their numbers, without those already left out. None: all rows.
        nullable: columns that may be null.
        dropped: numbers of rows already left out, by reason.
        notes: further properties to count among the problems that are kept.

    Returns:
        The problems in upstream's order, with the columns of ``FEATURES``.

    Raises:
        ConfigError: there is a null, an empty text, a level outside 1 to 5 or an id that occurs twice. The message
            names file and row.
    """
    reasons, noted, copies = Counter(dropped), Counter(), Counter()
    ids: set[str] = set()
    problems: list[dict[str, Any]] = []
    num_read = reasons.total()
    for number, row in upstream if rows is None else rows:
        num_read += 1
        if missing := [column for column, value in row.items() if value is None and column not in nullable]:
            raise upstream.refuse(number, f"no value for {', '.join(missing)}")
        try:
            problem = convert(row)
            check_texts(problem, drop_empty)
        except Dropped as reason:
            reasons[str(reason)] += 1
            continue
        except ValueError as error:
            raise upstream.refuse(number, str(error)) from error
        if problem.id is None:
            name = hash_text(upstream.source, problem.problem)
            copies[name] += 1
            problem.id = name + (f"-{copies[name]}" if copies[name] > 1 else "")
        if problem.id in ids:
            raise upstream.refuse(number, f"the id {problem.id!r} has occurred before")
        ids.add(problem.id)
        noted.update(name for name, holds in (notes or {}).items() if holds(problem))
        problems.append(vars(problem) | {"source": upstream.source})

    left_out = f"{reasons.total():,} dropped" + (f" ({format_counts(reasons)})" if reasons else "")
    kept = f"{len(problems):,} kept" + (f" (among them {format_counts(noted)})" if noted else "")
    log.info("%s: %s rows read from %s, %s, %s", upstream.source, f"{num_read:,}", upstream.origin, left_out, kept)
    return Dataset.from_dict({column: [row[column] for row in problems] for column in FEATURES}, features=FEATURES)


def check_texts(problem: Problem, drop_empty: bool) -> None:
    """Refuse a problem or an answer that is not a text, or is empty.

    Raises:
        Dropped: one is empty, and ``drop_empty`` is true.
        ValueError: one is empty and ``drop_empty`` is false, is not a text, or has half a character (a surrogate).
    """
    for name in ("problem", "answer"):
        text = getattr(problem, name)
        if not isinstance(text, str):
            raise ValueError(f"the {name} is {text!r}, not a text")
        text.encode()  # UnicodeEncodeError is a ValueError
        if not text.strip():
            if drop_empty:
                raise Dropped(f"empty {name}")
            raise ValueError(f"the {name} is empty, and drop_empty is false")


def format_counts(counts: Mapping[str, int]) -> str:
    """Format counts as text, such as "2 empty answer, 1 proof"."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
