"""Gold answers that fail against themselves.

Rows that are not ours to ship are read from the folder that LENS_SHARED names; without it, their test is skipped.
"""

from __future__ import annotations

import logging

from datasets import Dataset

from lens.grading.golds import NAMED, count_failing, name_failing_golds
from lens.grading.pool import Grader
from lens.problems.problem import FEATURES
from tests.support.grading import shared_rows


def problems_of(answers: list[str]) -> Dataset:
    rows = {"problem": answers, "answer": answers, "level": [None] * len(answers), "subject": [None] * len(answers)}
    rows |= {"id": [f"p{n}" for n in range(len(answers))], "source": ["x"] * len(answers)}
    return Dataset.from_dict(rows, features=FEATURES)


def test_gold_answers_that_fail_are_named_and_counted(grader, caplog):
    sets = {"dataset": problems_of(["1", "", r"\frac{1}{2}"]), "math500": problems_of(["7"])}
    failing = name_failing_golds(grader, sets)
    assert failing == {"dataset": [{"id": "p1", "answer": "", "verdict": "no_answer"}], "math500": []}
    assert count_failing(failing) == {"dataset": 1, "math500": 0}
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == "dataset: no answer to p1 can be correct: its gold answer '', graded against itself, is no_answer"


def test_many_failing_gold_answers_do_not_fill_the_log(grader, caplog):
    failing = name_failing_golds(grader, {"dataset": problems_of([" " * n for n in range(NAMED + 5)])})
    assert [gold["id"] for gold in failing["dataset"]] == [f"p{n}" for n in range(NAMED + 5)]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == NAMED + 1
    assert warnings[-1] == "dataset: and 5 more gold answers that fail; all are in failing_golds.json"


def test_golds_of_math_train_equal_themselves(grader: Grader):
    answers = [row["answer"] for row in shared_rows("math_train.jsonl")]
    failures = grader.list_failing_golds(answers)
    assert len(answers) == 7500
    assert {(place, answer) for place, answer, _ in failures} >= {(5341, ""), (5343, "")}
    assert len(failures) <= 2 + 5, failures
