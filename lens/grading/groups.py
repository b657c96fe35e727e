"""Grades groups of answers, and warns where many of them could not be judged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from lens.distributed.processes import rank
from lens.grading.judge import UNJUDGEABLE, Unjudgeable
from lens.grading.pool import Grade, Reward

log = logging.getLogger(__name__)

MANY_UNJUDGED = 0.01  # share of the answers that could not be judged above which a warning says so


class AnyGrader(Protocol):
    """What grades answers: a `Grader`, or those of all processes as one (lens/grading/parallel_grader.py)."""

    unjudgeable: Unjudgeable
    reward: Reward

    def grade(self, completions: Sequence[str], answers: Sequence[str]) -> list[Grade]:
        """Grade each completion against the gold answer at the same place."""


def grade_groups(grader: AnyGrader, texts: Sequence[str], golds: Sequence[str], num_generations: int) -> list[Grade]:
    """Grade whole groups: return the grade of each answer, in order.

    Args:
        grader: the grader.
        texts: the answers, ``num_generations`` in a row for each gold.
        golds: the gold answers.
        num_generations: answers to each question.
    """
    repeated = [gold for gold in golds for _ in range(num_generations)]
    grades = grader.grade(texts, repeated)
    counts = {name: sum(grade.verdict == name for grade in grades) for name in UNJUDGEABLE}
    if (unjudged := sum(counts.values())) > MANY_UNJUDGED * len(grades) and rank() == 0:
        message = "%d of %d answers could not be judged (%s), over %g %%; %s"
        consequence = {
            "incorrect": "they count as wrong, by grader.unjudgeable=incorrect",
            "invalid": "they are wrong in pass@k and teach nothing, by grader.unjudgeable=invalid",
        }[grader.unjudgeable]
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        log.warning(message, unjudged, len(grades), said, 100 * MANY_UNJUDGED, consequence)
    return grades
