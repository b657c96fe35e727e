"""Grades gold answers against themselves. If a gold fails that, no answer to its problem can be correct."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from datasets import Dataset

from lens.errors import ConfigError
from lens.grading.judge import UNJUDGEABLE
from lens.grading.pool import Grader
from lens.grading.verifiers import split_gold

log = logging.getLogger(__name__)

NAMED = 20  # gold answers of one set that the log names


def check_verifiers(grader: Grader, sets: Mapping[str, Dataset]) -> None:
    """Refuse problems whose own verifier cannot judge their right answer; one of each subject and level is tried.

    Raises:
        ConfigError: a verifier fails, or does not finish within the grader's limits.
    """
    for name, problems in sets.items():
        tried: dict[tuple[str | None, int | None], str] = {}
        for subject, level, gold in zip(
            *(problems[column][:] for column in ("subject", "level", "answer")), strict=True
        ):
            if split_gold(gold).verifier is not None:
                tried.setdefault((subject, level), gold)
        for place, gold, verdict in grader.list_failing_golds(list(tried.values())):
            if verdict in UNJUDGEABLE:
                subject, level = list(tried)[place]
                which = f"{subject}, Level {level} ({name})"
                valid = f"the verifier {split_gold(gold).verifier} gives {verdict} to a right answer of {which}"
                raise ConfigError("grader.timeout_s", grader.timeout_s, f"{valid}: leave these problems out")


def name_failing_golds(grader: Grader, sets: Mapping[str, Dataset]) -> dict[str, list[dict[str, str]]]:
    """Grade each gold answer against itself, and log the first few that fail.

    Returns:
        For each set, the failing golds: id of the problem, answer, verdict.
    """
    failing = {}
    for name, problems in sets.items():
        found = grader.list_failing_golds(problems["answer"][:])
        ids = problems["id"][:]
        failing[name] = [
            {"id": ids[place], "answer": split_gold(answer).answer, "verdict": verdict}
            for place, answer, verdict in found
        ]
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
