"""Grading of groups: in order, and with a warning where many answers cannot be judged."""

from __future__ import annotations

import logging

import pytest

from lens.grading.groups import MANY_UNJUDGED, grade_groups
from lens.grading.parallel_grader import ParallelGrader
from lens.grading.pool import Grader
from tests.support.grading import boxed

MANY = 120  # answers of which one is less than the share that a warning needs


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("unjudgeable", "consequence"),
    [
        ("incorrect", "they count as wrong, by grader.unjudgeable=incorrect"),
        ("invalid", "they are wrong in pass@k and teach nothing, by grader.unjudgeable=invalid"),
    ],
)
def test_answers_that_cannot_be_judged_are_warned_of_above_a_share(caplog, unjudgeable: str, consequence: str):
    with Grader(num_workers=2, timeout_s=0.5, unjudgeable=unjudgeable) as grader:
        texts = [boxed("1:00"), boxed("12:00"), boxed("9^{9^{9^9}}"), boxed("0.5")]  # 1:00 is read as 1/0
        grades = grade_groups(ParallelGrader(grader), texts, ["12:00", "5"], 2)
        assert [grade.verdict for grade in grades] == ["error", "correct", "timeout", "incorrect"]
        assert warnings_of(caplog) == [
            f"2 of 4 answers could not be judged (1 timeout, 1 error), over 1 %; {consequence}"
        ]
        caplog.clear()
        assert 1 / MANY < MANY_UNJUDGED < 2 / MANY
        grade_groups(grader, [boxed("1:00"), *[boxed("12:00")] * (MANY - 1)], ["12:00"], MANY)
        assert warnings_of(caplog) == []


def test_a_gold_answer_that_cannot_be_judged_is_to_blame_for_its_answers(grader: Grader, caplog):
    assert [grade.verdict for grade in grade_groups(grader, [boxed("5"), "none"], [""], 2)] == ["bad_gold", "no_answer"]
    assert warnings_of(caplog) == []
