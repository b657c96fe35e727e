"""Lists the kinds of arithmetic problems: their texts, and for each one right procedure and four misconceptions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """One kind of problem.

    Attributes:
        level: 1 (easy) to 5 (hard).
        subject: one of MATH's subjects.
        text: the problem with {a}, {b}, {c} to fill in.
        operands: the values that a, b and c may take.
        procedures: five chains of steps (see lens/problems/worlds/arithmetic.py), the right one first.
    """

    level: int
    subject: str
    text: str
    operands: tuple[range, range, range]
    procedures: tuple[tuple[str, ...], ...]


SMALL, MEDIUM, LARGE = range(2, 13), range(2, 20), range(10, 30)
TEMPLATES = (
    Template(
        1,
        "Prealgebra",
        r"Compute $ {a} + {b} - {c} $ .",
        (LARGE, LARGE, SMALL),
        (("a+b", "_-c"), ("a+b", "_+c"), ("a+b",), ("a-c",), ("b-c",)),
    ),
    Template(
        1,
        "Prealgebra",
        r"Compute $ {a} \cdot {b} + {c} $ .",
        (SMALL, SMALL, MEDIUM),
        (("a*b", "_+c"), ("a+b", "_+c"), ("a*b", "_-c"), ("a*b",), ("b+c", "_*a")),
    ),
    Template(
        1,
        "Geometry",
        r"A triangle has sides of length $ {a} $ , $ {b} $ and $ {c} $ . What is its perimeter ?",
        (MEDIUM, MEDIUM, MEDIUM),
        (("a+b", "_+c"), ("a+b",), ("a+b", "_-c"), ("b+c",), ("a+c",)),
    ),
    Template(
        2,
        "Prealgebra",
        r"Compute $ {a} + {b} \cdot {c} $ .",
        (MEDIUM, SMALL, SMALL),
        (("b*c", "a+_"), ("a+b", "_*c"), ("a+b", "_+c"), ("b*c",), ("b+c", "a+_")),
    ),
    Template(
        2,
        "Algebra",
        r"Expand and compute $ {a} ( {b} + {c} ) $ .",
        (SMALL, MEDIUM, SMALL),
        (("b+c", "a*_"), ("a*b", "_+c"), ("a+b", "_+c"), ("b+c",), ("a*c", "_+b")),
    ),
    Template(
        2,
        "Geometry",
        r"A square of area $ {c} $ is cut from a rectangle with sides $ {a} $ and $ {b} $ . What area remains ?",
        (MEDIUM, SMALL, range(2, 17)),
        (("a*b", "_-c"), ("a+b", "_-c"), ("a*b", "_+c"), ("a*b",), ("a+b", "_+c")),
    ),
    Template(
        3,
        "Algebra",
        r"If $ f ( x ) = {b} x + {c} $ , what is $ f ( {a} ) $ ?",
        (SMALL, SMALL, MEDIUM),
        (("b*a", "_+c"), ("b+a", "_+c"), ("a+c", "b*_"), ("b*a",), ("b+c", "_+a")),
    ),
    Template(
        3,
        "Number Theory",
        r"What is the remainder when $ {a} + {b} $ is divided by $ {c} $ ?",
        (LARGE, LARGE, range(3, 13)),
        (("a+b", r"_%c"), (r"b%c", "a+_"), (r"a%c", "b+_"), ("a+b",), ("a+b", "_-c")),
    ),
    Template(
        3,
        "Counting & Probability",
        r"You own $ {a} $ shirts and $ {b} $ hats , and $ {c} $ pairs clash . How many outfits are left ?",
        (MEDIUM, SMALL, SMALL),
        (("a*b", "_-c"), ("a+b", "_-c"), ("a-c", "_*b"), ("a*b",), ("a+b",)),
    ),
    Template(
        4,
        "Algebra",
        r"Solve $ x - {a} = {b} \cdot {c} $ for $ x $ .",
        (MEDIUM, SMALL, SMALL),
        (("b*c", "_+a"), ("b*c", "_-a"), ("b+c", "_+a"), ("b*c",), ("b+a", "_*c")),
    ),
    Template(
        4,
        "Intermediate Algebra",
        r"Solve $ \frac { x } { {a} } = {b} + {c} $ for $ x $ .",
        (SMALL, SMALL, SMALL),
        (("b+c", "_*a"), ("b+c", "_-a"), ("b*a", "_+c"), ("b+c",), ("b+c", "_+a")),
    ),
    Template(
        4,
        "Precalculus",
        r"Find the dot product of the vectors $ ( {a} , {b} ) $ and $ ( {b} , {c} ) $ .",
        (SMALL, SMALL, SMALL),
        (("a*b", "b*c", "_1+_"), ("a+b", "b+c", "_1+_"), ("a*c", "b*b", "_1+_"), ("a*b", "_+c"), ("a*b",)),
    ),
    Template(
        5,
        "Intermediate Algebra",
        r"A sequence starts at $ {a} $ and grows by $ {b} $ . What is term number $ {c} $ ?",
        (MEDIUM, SMALL, range(3, 12)),
        (("c-1", "_*b", "a+_"), ("c*b", "a+_"), ("a+b", "_*c"), ("c-1", "_*b"), ("a+b", "_+c")),
    ),
    Template(
        5,
        "Counting & Probability",
        r"How many marbles fill boxes number $ {a} $ to $ {b} $ with $ {c} $ in each ?",
        (MEDIUM, range(12, 30), range(2, 6)),
        (("b-a", "_+1", "_*c"), ("b-a", "_*c"), ("b-a", "_-1", "_*c"), ("b-a", "_+1"), ("b-a", "_+c")),
    ),
    Template(
        5,
        "Number Theory",
        r"What is the units digit of $ {a} \cdot {b} + {c} $ ?",
        (MEDIUM, SMALL, MEDIUM),
        (("a*b", "_+c", "_%10"), ("a*b", "_%10", "_+c"), ("a+b", "_+c", "_%10"), ("a*b", "_+c"), ("a*b", "_%10")),
    ),
)
