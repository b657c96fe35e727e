"""The verifier of countdown: against Python's own arithmetic, and against answers that mean harm."""

from __future__ import annotations

import random
import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens.grading.pool import Grader
from lens.grading.verifiers.countdown import verify
from tests.support.grading import boxed

GOLD = "( 3 + 5 ) * 4"
JUDGED = {
    "correct": [
        *("( 3 + 5 ) * 4", "4*(5+3)", "((3+5))*(4)", "(3+5)*4=32", "(03 + 5) * 4 = 32"),
        *(r"\left(3+5\right)\times 4", r"( 3 + 5 ) \cdot 4", "(3+5)×4"),
    ],
    "incorrect": [
        *("3 + 5 * 4", "5 + 3", "32", "( 3 + 5 ) * 4 + 4 - 4", "(3+5)*4*1", "(3+5)*4=33", "3/(5-5)", r"\frac{3+5}{4}"),
        "(" * 600 + "3" + ")" * 600,
        "3+" * 400 + "5",
    ],
    "no_answer": [
        *("", "4(3+5)", "(3+5", "3+5)*4", "3 5 4", "(3+5)*-4", "+3", "3+", "()", "(3+5)*4=", "(3+5)*4=32=32", "=32"),
        *("(3+5)**4", "(3+5)*4!", "3.0", "x", "３+5*4", "3" * 12, r"\frac{3}", r"\frac{3}{5", "{3+5}*4", r"\frac 3 5"),
        *("__import__('os')", "9^{9^{9^9}}", "\0", "\ud800", r"\left", "3 + 5 \\"),
    ],
}


@pytest.mark.parametrize(("verdict", "answer"), [(v, answer) for v, answers in JUDGED.items() for answer in answers])
def test_the_verdict_on_an_answer(verdict: str, answer: str):
    assert verify(GOLD, answer) == verdict


def test_values_are_exact_fractions():
    assert verify("8 / ( 3 - 8 / 3 )", r"\frac{8}{3-\dfrac{8}{3}}") == "correct"
    assert verify("8 / ( 3 - 8 / 3 )", "8 / ( 3 - 8 / 3 ) = 24") == "correct"
    assert verify("999999999 * 999999999 + 1", "1 + 999999999 * 999999999") == "correct"
    assert verify("999999999 * 999999999 + 1", "999999999 * 999999999 / 1") == "incorrect"


@pytest.mark.parametrize("gold", ["", "3 +", "x", "3 / ( 5 - 5 )"])
def test_a_gold_that_is_no_puzzle_is_an_error(gold: str):
    assert verify(gold, "3") == "error"


def make_expression(rng: random.Random, numbers: list[int]) -> str:
    """An expression with the numbers in this order, and brackets around each operation but the last."""
    if len(numbers) == 1:
        return str(numbers[0])
    cut = rng.randrange(1, len(numbers))
    left, right = make_expression(rng, numbers[:cut]), make_expression(rng, numbers[cut:])
    text = f"{left} {rng.choice('+-*/')} {right}"
    return f"( {text} )" if rng.random() < 0.6 else text


def compute(expression: str) -> Fraction | None:
    """The value by Python's own parser; None if it divides by zero."""
    try:
        return eval(re.sub(r"\d+", r"Fraction(\g<0>)", expression), {"Fraction": Fraction})
    except ZeroDivisionError:
        return None


def test_verdicts_agree_with_python_on_two_thousand_answers():
    """Half of the answers have the right numbers; few numbers, so that right values come up by chance as well."""
    rng, seen = random.Random(0), {True: 0, False: 0}
    while min(seen.values()) < 1000:
        numbers = [rng.randrange(1, 5) for _ in range(rng.randrange(2, 5))]
        gold = make_expression(rng, numbers)
        if (target := compute(gold)) is None:
            continue
        others = rng.sample(numbers, len(numbers)) if rng.random() < 0.8 else [rng.randrange(1, 5) for _ in numbers]
        answer = gold if rng.random() < 0.1 else make_expression(rng, others)
        right = compute(answer) == target and sorted(re.findall(r"\d+", answer)) == sorted(re.findall(r"\d+", gold))
        assert verify(gold, answer) == ("correct" if right else "incorrect"), (gold, answer)
        seen[right] += 1


@given(st.one_of(st.text(), st.text(alphabet="0123456789+-*/()={} \\frac", max_size=1200)))
def test_any_text_gets_a_verdict_at_once(text: str):
    start = time.process_time()
    assert verify(GOLD, text) in ("correct", "incorrect", "no_answer")
    assert time.process_time() - start < 0.5


def test_a_gold_answer_names_its_verifier():
    """One pool judges by several verifiers; an unknown one makes the gold bad, not the answer wrong."""
    puzzle = f"countdown://{GOLD}"
    pairs = [
        (boxed("4*(3+5)"), puzzle, "correct"),
        (boxed("32"), puzzle, "incorrect"),
        ("4*(3+5)", puzzle, "no_answer"),
        (boxed("4*(3+5)"), "32", "correct"),
        (boxed("0.5"), r"\frac12", "correct"),
        (boxed("1"), "nobody://1", "bad_gold"),
        (boxed("1"), "countdown://1 +", "bad_gold"),
    ]
    with Grader(num_workers=1, timeout_s=60) as grader:
        grades = grader.grade([text for text, _, _ in pairs], [gold for _, gold, _ in pairs])
        assert [grade.verdict for grade in grades] == [verdict for _, _, verdict in pairs]
        assert grader.list_failing_golds([puzzle, "32", "nobody://1"]) == [(2, "nobody://1", "error")]
