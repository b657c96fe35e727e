"""Checks that each gold answer is right by its own grader: no answer can match one that is not."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from datasets import Dataset

from lens.grading.pool import Grader

log = logging.getLogger(__name__)

NAMED = 20  # gold answers of one set that the log names


def check_golds(grader: Grader, sets: Mapping[str, Dataset]) -> dict[str, list[dict[str, str]]]:
    """Grade each gold answer against itself; log the first that fail; return all, by set: id, answer, verdict."""
    failing = {}
    for name, problems in sets.items():
        found = grader.check_golds(problems["answer"][:])
        ids = problems["id"][:]
        failing[name] = [{"id": ids[place], "answer": answer, "verdict": verdict} for place, answer, verdict in found]
        for gold in failing[name][:NAMED]:
            message = "%s: no answer to %s can be right: its gold answer %r, against itself, is %s"
            log.warning(message, name, gold["id"], gold["answer"], gold["verdict"])
        if len(found) > NAMED:
            log.warning(
                "%s: and %d more gold answers that fail; all are in failing_golds.json", name, len(found) - NAMED
            )
    log.info("Gold answers that fail against themselves: %s", count_failing(failing))
    return failing


def count_failing(failing: Mapping[str, list[dict[str, str]]]) -> dict[str, int]:
    """How many gold answers of each set fail."""
    return {name: len(golds) for name, golds in failing.items()}
