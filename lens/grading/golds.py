"""Grades each gold answer against itself. If a gold fails that, no answer to its problem can be correct."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from datasets import Dataset

from lens.grading.pool import Grader

log = logging.getLogger(__name__)

NAMED = 20  # gold answers of one set that the log names


def name_failing_golds(grader: Grader, sets: Mapping[str, Dataset]) -> dict[str, list[dict[str, str]]]:
    """Grade each gold answer against itself, and log the first few that fail.

    Returns:
        For each set, the failing golds: id of the problem, answer, verdict.
    """
    failing = {}
    for name, problems in sets.items():
        found = grader.list_failing_golds(problems["answer"][:])
        ids = problems["id"][:]
        failing[name] = [{"id": ids[place], "answer": answer, "verdict": verdict} for place, answer, verdict in found]
        for gold in failing[name][:NAMED]:
            message = "%s: no answer to %s can be correct: its gold answer %r, graded against itself, is %s"
            log.warning(message, name, gold["id"], gold["answer"], gold["verdict"])
        if len(found) > NAMED:
            log.warning(
                "%s: and %d more gold answers that fail; all are in failing_golds.json", name, len(found) - NAMED
            )
    log.info("Gold answers that fail against themselves: %s", count_failing(failing))
    return failing


def count_failing(failing: Mapping[str, list[dict[str, str]]]) -> dict[str, int]:
    """Return how many gold answers of each set fail."""
    return {name: len(golds) for name, golds in failing.items()}
