"""Makes the embedded dataset: short problems in MATH's form, and the lessons of an imperfect teacher of them.

Every template gives the text of a problem and five *procedures* on its three operands a, b, c. A procedure is a chain
of steps such as ``("b*c", "a+_")``, where ``_`` is the last result and ``_1``, ``_2`` are the earlier ones. The first
procedure is right. The others are mistakes that pupils make (left-to-right precedence, an off-by-one, stopping a step
early), the most common first. The teacher follows the right one with a probability that falls with the level. So a
student of that teacher starts like a language model on MATH: confident, and often wrong.

Problems and solutions are words separated by single spaces. All numbers lie in 0..99. A problem is left out if a
misconception gives the right answer by luck. The operand triple alone decides the split, for all templates: no triple
of the test split occurs in training.
"""

from __future__ import annotations

import functools
import itertools
import operator
import random
import re
from collections.abc import Callable, Sequence

from datasets import Dataset

from lens.problems.worlds.arithmetic_templates import TEMPLATES, Template
from lens.problems.worlds.drawing import choose_split, draw_by_level

LEVELS = (1, 2, 3, 4, 5)
LARGEST = 99
MISCONCEPTION_SHARES = (0.7, 0.15, 0.1, 0.05)
TEACHER_SKILL = {1: 0.9, 2: 0.6, 3: 0.2, 4: 0.03, 5: 0.005}
SLIP_RATE = 0.02
TEACHING = (TEMPLATES, TEACHER_SKILL, MISCONCEPTION_SHARES, SLIP_RATE)
OPERATORS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "+": ("+", operator.add),
    "-": ("-", operator.sub),
    "*": (r"\cdot", operator.mul),
    "%": (r"\bmod", operator.mod),
}


def steps_of(procedure: tuple[str, ...], operands: tuple[int, int, int]) -> list[tuple[int, str, int, int]] | None:
    """Return the steps (left, operator, right, result) of a procedure, or None if a result leaves 0..99."""
    values = dict(zip("abc", operands, strict=True))
    steps = []
    for number, (left, sign, apply, right) in enumerate(parse_procedure(procedure), start=1):
        x, y = values.get(left, left), values.get(right, right)
        result = apply(x, y)
        if not 0 <= result <= LARGEST:
            return None
        values["_"] = values[f"_{number}"] = result
        steps.append((x, sign, y, result))
    return steps


@functools.cache
def parse_procedure(procedure: tuple[str, ...]) -> list[tuple[str | int, str, Callable[[int, int], int], str | int]]:
    """Return left, sign, operator and right of steps such as ``a+b`` or ``_1*3``; constants as numbers."""

    def number_or_name(text: str) -> str | int:
        return int(text) if text.isdigit() else text

    steps = [re.fullmatch(r"(\w+)([-+*%])(\w+)", step).groups() for step in procedure]
    return [(number_or_name(x), sign, OPERATORS[sign][1], number_or_name(y)) for x, sign, y in steps]


def write_solution(steps: list[tuple[int, str, int, int]]) -> str:
    """Write a chain of thought such as ``4 \\cdot 5 = 20 , 20 + 3 = 23 , \\boxed{ 23 }``."""
    thoughts = [f"{x} {OPERATORS[sign][0]} {y} = {result} ," for x, sign, y, result in steps]
    return " ".join([*thoughts, rf"\boxed{{ {steps[-1][-1]} }}"])


@functools.cache
def split_of(operands: tuple[int, int, int]) -> str:
    """Return the split that a triple of operands belongs to. It is the same for every template."""
    return choose_split("-".join(map(str, operands)))


@functools.cache
def operand_pool(template: Template, split: str) -> tuple[tuple[int, int, int], ...]:
    """Return all triples of a split on which every procedure stays in 0..99 and no misconception is right by luck."""
    pool = []
    for operands in itertools.product(*template.operands):
        if split_of(operands) != split:
            continue
        right, *wrong = template.procedures
        solution = steps_of(right, operands)
        if solution is None:
            continue
        chains = (steps_of(procedure, operands) for procedure in wrong)  # lazily: most triples fail at the first
        if all(chain is not None and chain[-1][-1] != solution[-1][-1] for chain in chains):
            pool.append(operands)
    return tuple(pool)


@functools.cache
def level_pool(level: int, split: str) -> tuple[tuple[Template, tuple[int, int, int]], ...]:
    """Return the problems of one level and split. Its templates take turns until one of them runs out."""
    templates = [template for template in TEMPLATES if template.level == level]
    pools = []
    for template in templates:
        pool = list(operand_pool(template, split))
        random.Random(template.text).shuffle(pool)
        pools.append([(template, operands) for operands in pool])
    return tuple(itertools.chain.from_iterable(zip(*pools, strict=False)))


def fill_in(template: Template, operands: tuple[int, int, int]) -> str:
    """Return the template's text with the operands filled in."""
    values = dict(zip("abc", operands, strict=True))
    return re.sub(r"\{([abc])\}", lambda match: str(values[match[1]]), template.text)


def make_problem(template: Template, operands: tuple[int, int, int]) -> dict:
    """Make a row of the problem schema (problem, answer, level, subject, id, source) with the right answer."""
    return {
        "problem": fill_in(template, operands),
        "answer": str(steps_of(template.procedures[0], operands)[-1][-1]),
        "level": template.level,
        "subject": template.subject,
        "id": f"arithmetic/{TEMPLATES.index(template)}/" + "-".join(map(str, operands)),
        "source": "arithmetic",
    }


def load(
    split: str = "train",
    *,
    size: int | None = None,
    levels: Sequence[int] = LEVELS,
    seed: int = 0,
    key: str = "dataset.arithmetic",
) -> Dataset:
    """Make the problems of one split. The splits share no operand triple. See `World.load`."""
    drawn = draw_by_level(level_pool, split, size=size, levels=levels, known=LEVELS, seed=seed, key=key)
    return Dataset.from_list([make_problem(*pick) for pick in drawn])


def teach(rng: random.Random, skill: dict[int, float] | None = None, slip_rate: float = SLIP_RATE) -> tuple[str, str]:
    """Give one lesson of the imperfect teacher on a training problem.

    Args:
        rng: the random number generator.
        skill: probability of the right procedure, by level. None: TEACHER_SKILL.
        slip_rate: probability that the result of the last step is off by one.

    Returns:
        The problem and its solution, which is often wrong.
    """
    skill = TEACHER_SKILL if skill is None else skill
    template = rng.choice(TEMPLATES)
    operands = rng.choice(operand_pool(template, "train"))
    procedure = template.procedures[0]
    if rng.random() >= skill[template.level]:
        procedure = rng.choices(template.procedures[1:], MISCONCEPTION_SHARES)[0]
    steps = steps_of(procedure, operands)
    if rng.random() < slip_rate:
        x, sign, y, result = steps[-1]
        steps[-1] = (x, sign, y, min(max(result + rng.choice((-1, 1)), 0), LARGEST))
    return fill_in(template, operands), write_solution(steps)


def vocabulary() -> list[str]:
    """Return every word that a problem or a solution can hold, in a fixed order: the numbers 0..99 first."""
    texts = [re.sub(r"\{[abc]\}", "0", template.text) for template in TEMPLATES]
    signs = [sign for sign, _ in OPERATORS.values()]
    words = {word for text in texts for word in text.split()} | {*signs, "=", ",", r"\boxed{", "}"}
    numbers = [str(number) for number in range(LARGEST + 1)]
    return numbers + sorted(words - set(numbers))
