"""A second opinion on two answers, by their spelling and their numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens.grading.second_opinion import agrees, read_numbers

ALIKE = [
    ("7", " 7. "),
    (r"\text{4:30 p.m.}", r"4:30 \text{ p.m.}"),
    (r"\frac{1}{2}", r"\dfrac12"),
    (r"\frac{1}{2}", r"\tfrac{1} 2"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    (r"-\frac{3}{4}", r"\frac{-3}{4}"),
    (r"3\frac{1}{2}", "3.5"),
    (r"25\%", "25"),
    (r"25\%", "0.25"),
    (r"25\%", r"\frac{1}{4}"),
    (r"\$40", "40.00"),
    (r"10{,}000", "10000"),
    (r"50,\!625", "50,625"),
    (r"5\text{ cm}", "5"),
    (r"12\mathrm{\ m}^2", "12"),
    (r"90^\circ", "90"),
    (r"x = 5", "5"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\;\frac{\pi}{2})"),
    (r"\text{Even}", "even"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
]
DIFFERENT = [
    ("7", "8"),
    ("12", "1,2"),
    (r"(1,000)", "1000"),
    (r"\frac{1}{2}", r"\frac{2}{1}"),
    (r"25\%", "2500"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
    (r"\leftarrow", "arrow"),
    ("x^2", "x2"),
    ("2-1", "1"),
    ("7", "9^{9^{9}}"),
    ("1", "1e999999999"),
    ("0", "0/0"),
]


@pytest.mark.parametrize(("gold", "answer"), ALIKE)
def test_two_spellings_of_one_answer(gold, answer):
    assert agrees(gold, answer) and agrees(answer, gold)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_two_answers(gold, answer):
    assert not agrees(gold, answer) and not agrees(answer, gold)


@given(st.text(st.sampled_from(list(r"\{}$%,./-^ 0123456789xfractext")), max_size=40))
def test_the_second_opinion_has_one_on_any_text(text):
    assert agrees(text, text)
    assert all(abs(number) < 10**61 for number in read_numbers(text))


@pytest.mark.skipif("LENS_SHARED" not in os.environ, reason="LENS_SHARED is not set: no real rows to test with")
def test_on_real_answers_the_two_opinions_differ_in_the_spelling_of_one_time_of_day(grader):
    file = Path(os.environ["LENS_SHARED"]) / "data" / "model_completions.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    grades = grader.grade([row["completion"] for row in rows], [row["gold"] for row in rows])
    second = [agrees(row["gold"], grade.extracted or "") for row, grade in zip(rows, grades, strict=True)]
    differing = [n for n, grade in enumerate(grades) if grade.correct != second[n]]
    assert {(rows[n]["gold"], grades[n].extracted) for n in differing} == {(r"\text{4:30 p.m.}", r"4:30 \text{ p.m.}")}
    assert (len(rows), sum(not grade.correct for grade in grades), len(differing)) == (400, 56, 8)
