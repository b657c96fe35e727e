"""All processes grade as one: each takes a share of the answers, and all get every grade."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from lens.distributed.collectives import Interruptible, gather_from_each, rank, world_size
from lens.grading.pool import Grade, Grader


class SharedGrader:
    """A grader in each process, as one."""

    def __init__(self, grader: Grader, interruptible: Interruptible = nullcontext):
        self.grader, self.interruptible = grader, interruptible

    def grade(self, completions: Sequence[str], answers: Sequence[str]) -> list[Grade]:
        """See `lens.grading.Grader`."""
        start, end = (len(answers) * number // world_size() for number in (rank(), rank() + 1))
        parts = gather_from_each(
            lambda: self.grader.grade(completions[start:end], answers[start:end]), self.interruptible
        )
        return [grade for part in parts for grade in part]
