"""Finds the evaluation problems that occur among the training problems.

Two problems are the same if their texts are, apart from white space. That finds copies only: a problem that was
reworded, or given other numbers, passes. DAPO-Math-17k alone holds 972 of the 5,000 problems of MATH's test split,
including a third of Level 5. So a result on MATH after training on DAPO is partly a result on training problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from datasets import Dataset

from lens.problems.problem import fingerprint


def overlap(train: Dataset, evaluation: Dataset) -> list[str]:
    """Return the ids of the evaluation problems that occur in ``train``, in the order of ``evaluation``."""
    return find_held(fingerprints(train), evaluation)


def fingerprints(problems: Dataset) -> set[str]:
    """Return the texts of all problems, without white space."""
    return {fingerprint(text) for text in problems["problem"]}


def find_held(texts: Collection[str], evaluation: Dataset) -> list[str]:
    """Return the ids of the evaluation problems whose fingerprints are among ``texts``."""
    pairs = zip(evaluation["id"], evaluation["problem"], strict=True)
    return [id for id, text in pairs if fingerprint(text) in texts]


def describe_overlap(ids: Collection[str], evaluation: Dataset) -> dict[str, Any]:
    """Make a report on the overlap of one evaluation set with the training data, ready for JSON.

    Args:
        ids: ids of its problems that occur in training.
        evaluation: the evaluation set.

    Returns:
        ``count``: the number of ids. ``of``: the size of the set. ``by_level``: the count of each level, as text, or
        "unlevelled" for null. ``ids``: the ids.
    """
    ids = list(ids)
    chosen = set(ids)
    counts: Counter[int | None] = Counter()
    for id, level in zip(evaluation["id"], evaluation["level"], strict=True):
        counts[level] += id in chosen
    levels = sorted(counts, key=lambda level: (level is None, level or 0))
    by_level = {"unlevelled" if level is None else str(level): counts[level] for level in levels}
    return {"count": len(ids), "of": len(evaluation), "by_level": by_level, "ids": ids}


def drop_ids(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report without its ids."""
    return {name: value for name, value in report.items() if name != "ids"}
