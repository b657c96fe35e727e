r"""Judges countdown: does an expression reach the target, with each of the given numbers exactly once?

The gold answer is a solution, such as ``( 3 + 5 ) * 4``. Its numbers are the given ones, and its value is the target.
So it is the whole puzzle, and any other expression with these numbers and this value is as right.

An expression has whole numbers without a sign, ``+ - * /`` between them, and brackets. It may end in ``= target``.
LaTeX is read as far as models write it: ``\times``, ``\cdot``, ``\div``, ``\frac{a}{b}``, ``\left(``. Values are exact
fractions. An answer is read in one pass, without recursion, and computed only if its numbers are the given ones. So no
answer takes longer, or makes larger numbers, than its puzzle allows.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from fractions import Fraction

from lens.grading.judge import Verdict

LONGEST = 1_000  # characters of an answer
SPELLINGS = {r"\times": "*", r"\cdot": "*", r"\div": "/", "×": "*", "·": "*", "÷": "/", "−": "-"}
TOKEN = re.compile(
    r"\s*(?:\\left|\\right|\\[,;:! ])?\s*"
    r"(?:(?P<number>[0-9]{1,9})(?![0-9])|(?P<fraction>\\[dt]?frac)|(?P<sign>\\times|\\cdot|\\div|[-+*/×·÷−(){}]))"
)
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
CLOSES = {")": "(", "}": "{"}
FRACTION = ("numerator", "denominator")  # what a brace of a LaTeX fraction may stand for


class Unreadable(Exception):  # noqa: N818 (no error: models write such things)
    """Raised for a text that is no expression."""


def verify(gold: str, prediction: str) -> Verdict:
    """Judge an answer against a solution of its puzzle.

    Args:
        gold: a solution.
        prediction: the answer: an expression.

    Returns:
        ``correct`` or ``incorrect``; ``no_answer`` if the prediction is no expression; ``error`` if the gold is none.
    """
    if len(prediction) > LONGEST:
        return "incorrect"
    try:
        puzzle = read_expression(gold)
        target = evaluate(puzzle)
    except (Unreadable, ZeroDivisionError):
        return "error"
    expression, equals, claimed = prediction.partition("=")
    try:
        answer = read_expression(expression)
        if equals and read_expression(claimed) != [str(target)]:
            return "incorrect"
    except Unreadable:
        return "no_answer"
    if list_numbers(answer) != list_numbers(puzzle):
        return "incorrect"
    try:
        return "correct" if evaluate(answer) == target else "incorrect"
    except ZeroDivisionError:
        return "incorrect"


def read_expression(text: str) -> list[str]:
    """Return an expression in postfix form: numbers and signs, each sign behind its two operands.

    This is Dijkstra's shunting yard. A LaTeX fraction is two brackets with a division between them.

    Raises:
        Unreadable: the text is no expression.
    """
    output: list[str] = []
    waiting: list[str] = []  # signs and open brackets; and which part of a fraction comes next
    operand_next = True
    for token in split_tokens(text):
        if token.isdigit() or token in ("(", "{", "numerator"):
            if not operand_next or (token == "{") != (waiting[-1:] in ([part] for part in FRACTION)):
                raise Unreadable(text)
            operand_next = not token.isdigit()
            (waiting if operand_next else output).append(token)
        elif operand_next:
            raise Unreadable(text)
        elif token in CLOSES:
            operand_next = close_bracket(token, output, waiting)
        else:
            while waiting and PRECEDENCE.get(waiting[-1], 0) >= PRECEDENCE[token]:
                output.append(waiting.pop())
            waiting.append(token)
            operand_next = True
    if operand_next or not set(waiting) <= PRECEDENCE.keys():
        raise Unreadable(text)
    return output + waiting[::-1]


def close_bracket(token: str, output: list[str], waiting: list[str]) -> bool:
    """Move what stands in the bracket to the output, and return whether the denominator of a fraction comes next.

    Raises:
        Unreadable: no such bracket is open.
    """
    while waiting and waiting[-1] in PRECEDENCE:
        output.append(waiting.pop())
    if not waiting or waiting.pop() != CLOSES[token]:
        raise Unreadable(token)
    if token == ")":
        return False
    part = waiting.pop()
    (waiting if part == "numerator" else output).append("denominator" if part == "numerator" else "/")
    return part == "numerator"


def split_tokens(text: str) -> Iterator[str]:
    """Yield the numbers, signs and brackets of a text in one spelling, and "numerator" where a fraction begins.

    Raises:
        Unreadable: something else stands there.
    """
    place, text = 0, text.rstrip()
    while place < len(text):
        if (match := TOKEN.match(text, place)) is None:
            raise Unreadable(text)
        place = match.end()
        sign = "numerator" if match["fraction"] else SPELLINGS.get(match["sign"], match["sign"])
        yield str(int(match["number"])) if match["number"] else sign


def list_numbers(postfix: list[str]) -> list[int]:
    """Return the numbers of an expression, sorted."""
    return sorted(int(token) for token in postfix if token.isdigit())


def evaluate(postfix: list[str]) -> Fraction:
    """Return the exact value of an expression in postfix form.

    Raises:
        ZeroDivisionError: it divides by zero.
    """
    stack: list[Fraction] = []
    for token in postfix:
        if token.isdigit():
            stack.append(Fraction(int(token)))
            continue
        right, left = stack.pop(), stack.pop()
        stack.append(COMPUTE[token](left, right))
    return stack.pop()
