"""The one form that every problem has, whatever source it comes from.

A source module reads rows in upstream's own form and says how one of them becomes a ``Problem``; ``collect`` does the
rest for all of them: it checks each problem, counts what is dropped and why, and builds the dataset.
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
    """A problem on its way into the dataset; an ``id`` of None is replaced by one made from the problem's text."""

    problem: str
    answer: str
    level: int | None = None
    subject: str | None = None
    id: str | None = None


class Dropped(Exception):  # noqa: N818 (no error: the configuration wants it so)
    """Raised for a row that the configuration leaves out; its message is the reason under which the row is counted."""


def fingerprint(text: str) -> str:
    """What two texts share when they state the same problem: the text without any white space."""
    return "".join(text.split())


def parse_level(value: Any) -> int | None:
    """The level as a number: 5 for 5 and for "Level 5", None for the "Level ?" of a few MATH rows.

    Raises:
        ValueError: anything else.
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
    """Turn the rows of one source into problems and log one line: rows read, dropped and why, kept.

    Args:
        upstream: the rows, which also know their file for error messages.
        convert: makes a ``Problem`` of a row; raises ``Dropped`` to leave it out, ``ValueError`` where it is broken.
        drop_empty: leave out (and count) rows whose problem or answer is empty, instead of refusing them.
        rows: those of upstream's rows, with their numbers, that were not left out before; None takes all.
        nullable: columns that may be null.
        dropped: rows that were left out before, by reason.
        notes: what else to count among the problems that are kept.

    Returns:
        The problems in upstream's order, with the columns of ``FEATURES``.

    Raises:
        ConfigError: a null, an empty text, a level outside 1 to 5 or an id that occurs twice; it names file and row.
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
            digest = hashlib.sha256(fingerprint(problem.problem).encode()).hexdigest()[:16]
            copies[digest] += 1
            problem.id = f"{upstream.source}/{digest}" + (f"-{copies[digest]}" if copies[digest] > 1 else "")
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
    """Raise for a problem or an answer that is no text (ValueError) or an empty one (Dropped if ``drop_empty``)."""
    for name in ("problem", "answer"):
        text = getattr(problem, name)
        if not isinstance(text, str):
            raise ValueError(f"the {name} is {text!r}, not a text")
        if not text.strip():
            if drop_empty:
                raise Dropped(f"empty {name}")
            raise ValueError(f"the {name} is empty, and drop_empty is false")


def format_counts(counts: Mapping[str, int]) -> str:
    """Counts in words: "2 empty answer, 1 proof"."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
