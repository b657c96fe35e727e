"""The verdict on one answer, judged here and by a worker.

Rows that are not ours to ship are read from the folder that LENS_SHARED names; without it, their tests are skipped.
"""

from __future__ import annotations

import pytest

from lens.grading.judge import Settings, judge, last_boxed
from lens.grading.pool import Grade, Grader
from tests.support.grading import boxed, shared_rows


@pytest.mark.parametrize(
    ("completion", "content"),
    [
        (r"\boxed{42}", "42"),
        (r"\boxed {  \frac{1}{2} } and more", r"\frac{1}{2}"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\left\{ x : x > 0 \right.}", r"\left\{ x : x > 0 \right."),
        (r"\boxed{\\}", r"\\"),
        ("no box, only 42", None),
        ("", None),
        (r"\boxed", None),
        (r"\boxed 42", None),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed{1} but then \boxed{2 is cut off", None),
        (r"\boxed{" * 500, None),
    ],
)
def test_the_last_box_is_extracted(completion: str, content: str | None):
    assert last_boxed(completion) == content


@pytest.mark.parametrize(
    ("gold", "prediction"),
    [
        ("42", "42.0"),
        (r"\frac{1}{2}", "0.5"),
        (r"\frac{1}{2}", r"\dfrac12"),
        (r"\text{Evelyn}", r"\text{Evelyn}"),
        ("(1,2)", r"\left(1, 2\right)"),
        (r"0 \le x < 1", "[0,1)"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("5", "x=5"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"25\%", "25"),
        (r"25\%", r"\frac14"),
        ("25", r"25\%"),
        ("10{,}000", "10000"),
        (r"90^\circ", "90"),
    ],
)
def test_equal_answers_are_correct(grader: Grader, gold: str, prediction: str):
    assert grader.grade([boxed(prediction)], [gold]) == [Grade("correct", prediction)]
    assert judge(gold, prediction) == "correct"


@pytest.mark.parametrize(
    ("gold", "completion", "verdict"),
    [
        ("5", "so the answer is 5", "no_answer"),
        ("5", "**Answer**: $5$. The final answer is $5$. I hope it is correct.", "no_answer"),
        ("5", r"\boxed{5}, or rather \boxed{6}", "incorrect"),
        ("1,2", r"$\boxed{1}$ and $\boxed{2}$", "incorrect"),
        ("5", r"\boxed{4}$, \boxed{5}, \boxed{6}$", "incorrect"),
        ("5", r"\boxed{3,4,5,6}", "incorrect"),
        ("5", r"\boxed{5 \text{ or } 6}", "incorrect"),
        ("5", r"\boxed{x}", "incorrect"),
        ("5", r"\boxed{\frac{0}{0}}", "incorrect"),
        ("5", r"\boxed{\mathbb{R}}", "incorrect"),
        ("x+1", r"\boxed{y+1}", "incorrect"),
        ("[0,1)", r"\boxed{0 \le x < 1}", "incorrect"),  # not symmetric: the gold comes first
        ("(3,4)", r"\boxed{(3,4}", "incorrect"),
        ("5", r"\boxed{\text{}}", "no_answer"),
        ("", r"\boxed{5}", "bad_gold"),
    ],
)
def test_what_is_not_the_boxed_answer_earns_nothing(grader: Grader, gold: str, completion: str, verdict: str):
    (grade,) = grader.grade([completion], [gold])
    assert grade.verdict == verdict
    assert grade.correct == (verdict == "correct")
    assert grade.extracted == last_boxed(completion)


def test_failures_of_math_verify_are_errors_unless_another_reading_matches():
    assert judge("12:00", "1:00") == "error"  # read as 12/0, which math-verify refuses to compare
    assert judge("12:00", "12:00") == "correct"


INTEGERS = ["0", "-0", "5", "-5", "05", "50", "12345678901234", "-12345678901234", "123456789012345678"]


def test_integers_earn_the_same_with_and_without_a_worker(grader: Grader):
    pairs = [(gold, prediction) for gold in INTEGERS for prediction in INTEGERS]
    grades = grader.grade([boxed(prediction) for _, prediction in pairs], [gold for gold, _ in pairs])
    assert [grade.verdict for grade in grades] == [judge(gold, prediction) for gold, prediction in pairs]


def row_settings(row: dict) -> Settings:
    shared = {name: row[name] for name in Settings.__dataclass_fields__ if name in row}
    return Settings(boxed_only=False, latex="latex" in row["match_types"], expr="expr" in row["match_types"], **shared)


def test_verifier_cases_come_out_as_from_math_verify_itself(grader: Grader):
    rows = shared_rows("verifier_cases.jsonl")
    other = []
    for row in rows:
        (grade,) = grader.grade([row["pred"]], [row["gold"]], settings=row_settings(row))
        assert grade.correct == bool(row["math_verify_0_9_0"]), row
        (reward,) = grader.grade([row["pred"]], [row["gold"]])
        if reward.correct != bool(row["expected"]):
            other.append((reward, row["gold"][:60], row["pred"][-60:]))
    boxless = [case for case in other if case[0].verdict == "no_answer"]
    print(f"\nthe reward settings decide {len(other)} of {len(rows)} otherwise: {len(boxless)} for want of a box, and")
    print(*(case for case in other if case[0].verdict != "no_answer"), sep="\n")
    assert not any(reward.correct for reward, _, _ in other)  # they are stricter, never laxer


def test_labels_of_model_completions_are_met(grader: Grader):
    rows = shared_rows("model_completions.jsonl")
    grades = grader.grade([row["completion"] for row in rows], [row["gold"] for row in rows])
    missed = [(row["gold"], grade) for row, grade in zip(rows, grades, strict=True) if grade.correct != row["label"]]
    assert len(rows) == 400
    assert len(missed) <= 1, missed
