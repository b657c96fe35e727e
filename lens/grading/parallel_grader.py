"""Shares grading among processes: each grades a part of the answers, and all get every grade."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from lens.distributed.collectives import Interruptible, gather_from_each, rank, world_size
from lens.grading.pool import Grade, Grader


class ParallelGrader:
    """Makes the graders of all processes act as one.

    Args:
        grader: this process's grader.
        interruptible: lets SIGTERM interrupt this process's share of the work.
    """

    def __init__(self, grader: Grader, interruptible: Interruptible = nullcontext):
        self.grader, self.interruptible = grader, interruptible
        self.unjudgeable, self.reward = grader.unjudgeable, grader.reward

    def grade(self, completions: Sequence[str], answers: Sequence[str]) -> list[Grade]:
        """See `lens.grading.pool.Grader.grade`. Every process must call this with all answers."""
        start, end = (len(answers) * number // world_size() for number in (rank(), rank() + 1))
        parts = gather_from_each(
            lambda: self.grader.grade(completions[start:end], answers[start:end]), self.interruptible
        )
        return [grade for part in parts for grade in part]
