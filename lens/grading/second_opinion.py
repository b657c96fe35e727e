"""Compares two answers as texts and plain numbers, without the algebra of the grader."""

from __future__ import annotations

import re
from fractions import Fraction

WORDS = r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox|operatorname)\s*\{([^{}]*)\}"
UNIT = re.compile(rf"(?<=[\d}}])\s*{WORDS}(?:\^\{{?\d\}}?)?\s*$")
SPELLINGS = [  # what may differ between two ways to write one answer, in the order in which it is removed
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (WORDS, r"\1"),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*(\d)", r"\\frac{\1}"),
        (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"(?<!\\)\\[ ,;:!]|\\q?quad(?![a-zA-Z])|~|\s", ""),
        (r"\\?\$|\^\{?\\circ\}?|\\?%|\.$", ""),
        (r"\{,\}", ","),
        (r"^[a-zA-Z]=", ""),
    )
]
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
FRACTION = re.compile(r"\\frac\{(-?\d+)\}\{(\d+)\}")
PLAIN_NUMBER = re.compile(r"[-\d./ ]{1,60}")


def agrees(gold: str, answer: str) -> bool:
    """Return whether two answers are the same text, apart from spelling, or the same plain number."""
    return remove_spelling(gold) == remove_spelling(answer) or bool(read_numbers(gold) & read_numbers(answer))


def remove_spelling(text: str) -> str:
    r"""Remove from a text what is mere spelling: spaces, ``$``, ``\left``, ``\text{}``, ``\dfrac``, ``x =``, case."""
    for pattern, replacement in SPELLINGS:
        text = pattern.sub(replacement, text)
    return text.casefold()


def read_numbers(text: str) -> set[Fraction]:
    r"""Read a text as a decimal, a fraction or a mixed number.

    Returns:
        The number; empty if the text is none. A percentage such as ``25\%`` gives both 25 and 1/4.
    """
    plain = FRACTION.sub(r" \1/\2", THOUSANDS.sub("", remove_spelling(UNIT.sub("", text))))
    if not PLAIN_NUMBER.fullmatch(plain):
        return set()
    try:
        value = sum(map(Fraction, plain.removeprefix("-").split())) * (-1 if plain.startswith("-") else 1)
    except (ValueError, ZeroDivisionError):
        return set()
    return {value, value / 100} if "%" in text else {value}
