"""The arithmetic problems against solvers of their own, and the teacher against the arithmetic that it writes down."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable

import pytest
from datasets import Dataset

from lens.errors import ConfigError
from lens.problems import load_problems
from lens.problems.problem import FEATURES
from lens.problems.worlds import arithmetic
from lens.problems.worlds.arithmetic import LEVELS, TEACHER_SKILL, TEMPLATES, load, teach
from lens.problems.worlds.drawing import SPLIT_SHARES

SPLITS = tuple(SPLIT_SHARES)
SUBJECTS = {
    "Prealgebra",
    "Algebra",
    "Intermediate Algebra",
    "Geometry",
    "Number Theory",
    "Counting & Probability",
    "Precalculus",
}

# Five problems of each split: results of before can only be compared with if these remain.
PINNED = {
    "train": [f"arithmetic/{n}" for n in ("11/8-4-2", "7/23-11-12", "14/7-10-11", "0/18-12-2", "4/4-11-3")],
    "validation": [f"arithmetic/{n}" for n in ("13/9-13-4", "10/8-5-5", "0/21-16-6", "5/13-7-3", "8/5-2-2")],
    "test": [f"arithmetic/{n}" for n in ("1/3-8-17", "14/7-2-18", "5/13-6-12", "7/11-13-8", "11/9-2-3")],
}

# How each kind of problem reads, its level, and what its numbers come to.
SOLVERS: list[tuple[str, int, Callable[..., int]]] = [
    (r"Compute \$ # \+ # - # \$ \.", 1, lambda a, b, c: a + b - c),
    (r"Compute \$ # \\cdot # \+ # \$ \.", 1, lambda a, b, c: a * b + c),
    (r"A triangle has sides of length \$ # \$ , \$ # \$ and \$ # \$ \. What is its perimeter \?", 1, lambda *s: sum(s)),
    (r"Compute \$ # \+ # \\cdot # \$ \.", 2, lambda a, b, c: a + b * c),
    (r"Expand and compute \$ # \( # \+ # \) \$ \.", 2, lambda a, b, c: a * (b + c)),
    (
        r"A square of area \$ # \$ is cut from a rectangle with sides \$ # \$ and \$ # \$ \. What area remains \?",
        2,
        lambda square, width, height: width * height - square,
    ),
    (r"If \$ f \( x \) = # x \+ # \$ , what is \$ f \( # \) \$ \?", 3, lambda slope, shift, x: slope * x + shift),
    (r"What is the remainder when \$ # \+ # \$ is divided by \$ # \$ \?", 3, lambda a, b, c: divmod(a + b, c)[1]),
    (
        r"You own \$ # \$ shirts and \$ # \$ hats , and \$ # \$ pairs clash \. How many outfits are left \?",
        3,
        lambda shirts, hats, clashes: shirts * hats - clashes,
    ),
    (r"Solve \$ x - # = # \\cdot # \$ for \$ x \$ \.", 4, lambda a, b, c: b * c + a),
    (r"Solve \$ \\frac \{ x \} \{ # \} = # \+ # \$ for \$ x \$ \.", 4, lambda a, b, c: (b + c) * a),
    (
        r"Find the dot product of the vectors \$ \( # , # \) \$ and \$ \( # , # \) \$ \.",
        4,
        lambda x1, y1, x2, y2: x1 * x2 + y1 * y2,
    ),
    (
        r"A sequence starts at \$ # \$ and grows by \$ # \$ \. What is term number \$ # \$ \?",
        5,
        lambda start, growth, number: range(start, start + 1000 * growth, growth)[number - 1],
    ),
    (
        r"How many marbles fill boxes number \$ # \$ to \$ # \$ with \$ # \$ in each \?",
        5,
        lambda first, last, each: each * len(range(first, last + 1)),
    ),
    (r"What is the units digit of \$ # \\cdot # \+ # \$ \?", 5, lambda a, b, c: int(str(a * b + c)[-1])),
]
PATTERNS = [(re.compile(text.replace("#", r"(\d+)")), level, solve) for text, level, solve in SOLVERS]


def solve(problem: str) -> tuple[int, int]:
    """The level and the answer of a problem, from its text alone."""
    (found,) = [(match, level, solver) for pattern, level, solver in PATTERNS if (match := pattern.fullmatch(problem))]
    match, level, solver = found
    return level, solver(*map(int, match.groups()))


@pytest.fixture(scope="module", params=SPLITS)
def problems(request) -> Dataset:
    """All problems of one split."""
    return load(request.param)


# --- problems ---


def test_answers_and_levels_agree_with_independent_solvers(problems):
    solved = [solve(problem) for problem in problems["problem"]]
    assert [level for level, _ in solved] == problems["level"][:]
    assert [str(answer) for _, answer in solved] == problems["answer"][:]
    assert all(0 <= answer <= 99 for _, answer in solved)


def test_every_template_occurs(problems):
    used = Counter(identifier.split("/")[1] for identifier in problems["id"])
    assert set(used) == {str(number) for number in range(len(TEMPLATES))}
    assert len(SOLVERS) == len(TEMPLATES)


def test_levels_are_equal_in_number(problems):
    counts = Counter(problems["level"])
    assert set(counts) == set(LEVELS) and len(set(counts.values())) == 1


def test_schema(problems):
    made = load_problems("arithmetic", split="test", size=10)
    assert made.features == FEATURES
    assert set(problems.column_names) == set(FEATURES)
    assert len(set(problems["id"])) == len(set(problems["problem"])) == len(problems)
    assert set(problems["source"]) == {"arithmetic"}
    assert set(problems["subject"]) == SUBJECTS
    assert all(text == " ".join(text.split()) for text in problems["problem"])  # words with single spaces between


def operands_of(split: str) -> set[str]:
    """Operand triples of all problems that a split could ever show."""
    return {
        "-".join(map(str, operands)) for template in TEMPLATES for operands in arithmetic.operand_pool(template, split)
    }


def test_splits_share_no_operands(problems):
    train, validation, test = map(operands_of, SPLITS)
    assert train and validation and test
    assert not train & validation and not train & test and not validation & test
    by_name = dict(zip(SPLITS, (train, validation, test), strict=True))
    shown = {identifier.split("/")[2] for identifier in problems["id"]}
    assert any(shown <= triples for triples in by_name.values())


def test_splits_have_about_their_shares():
    sizes = {split: len(operands_of(split)) for split in SPLITS}
    for split, share in SPLIT_SHARES.items():
        assert sizes[split] / sum(sizes.values()) == pytest.approx(share, abs=0.03)


def test_the_draw_is_decided_by_its_seed():
    first, again, other = (load("train", size=50, seed=seed)["id"][:] for seed in (0, 0, 1))
    assert first == again
    assert len(set(first) & set(other)) < 25


def test_published_draws_stay_as_they_were():
    drawn = {split: load(split, size=5)["id"][:] for split in SPLITS}
    assert drawn == PINNED


def test_a_size_takes_as_many_of_each_level():
    assert Counter(load("test", size=50)["level"]) == dict.fromkeys(LEVELS, 10)
    assert Counter(load("test", size=20, levels=(2, 5))["level"]) == {2: 10, 5: 10}
    assert set(load("validation", levels=(3,))["level"]) == {3}


def test_levels_are_mixed_in_the_order():
    levels = load("train", size=500)["level"][:]
    assert all(set(levels[start : start + 100]) == set(LEVELS) for start in range(0, 500, 100))


@pytest.mark.parametrize("size", [0, 3, 7, -5, 10_000_000])
def test_a_size_that_levels_cannot_share_is_refused(size):
    with pytest.raises(
        ConfigError, match=rf"arithmetic\.size={size}: must be a multiple of 5 from 5 to \d+ for split test"
    ):
        load("test", size=size)


def test_the_largest_size_is_the_one_that_the_refusal_names():
    with pytest.raises(ConfigError) as caught:
        load("test", size=10_000_000, levels=(1, 4))
    largest = int(re.search(r"to (\d+) for", str(caught.value))[1])
    assert len(load("test", size=largest, levels=(1, 4))) == largest
    assert len(load("test", levels=(1, 4))) == largest
    with pytest.raises(ConfigError):
        load("test", size=largest + 2, levels=(1, 4))


@pytest.mark.parametrize("levels", [(), (0,), (6,), (1, 1), (1, 2, 7)])
def test_levels_that_there_are_not_are_refused(levels):
    with pytest.raises(ConfigError, match=r"arithmetic\.levels"):
        load("test", levels=levels)


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"arithmetic\.split='dev': must be one of train, validation, test"):
        load("dev")


# --- the teacher ---

STEP = re.compile(r"(\d+) (\+|-|\\cdot|\\bmod) (\d+) = (\d+)")
SIGNS = {"+": "+", "-": "-", r"\cdot": "*", r"\bmod": "%"}


def read(solution: str) -> tuple[list[bool], int, int]:
    """Whether each step's equation holds, the last step's result, and the boxed answer."""
    *steps, end = solution.split(" , ")
    parsed = [STEP.fullmatch(step).groups() for step in steps]
    truths = [eval(f"{left} {SIGNS[sign]} {right}") == int(result) for left, sign, right, result in parsed]
    return truths, int(parsed[-1][3]), int(re.fullmatch(r"\\boxed\{ (\d+) \}", end)[1])


def test_a_perfect_teacher_is_always_right():
    rng = random.Random(0)
    for _ in range(1000):
        problem, solution = teach(rng, skill=dict.fromkeys(LEVELS, 1.0), slip_rate=0.0)
        truths, result, answer = read(solution)
        assert all(truths) and result == answer == solve(problem)[1]


def test_a_misconception_is_wrong_by_its_method_and_never_right_by_luck():
    rng = random.Random(0)
    for _ in range(3000):
        problem, solution = teach(rng, skill=dict.fromkeys(LEVELS, 0.0), slip_rate=0.0)
        truths, result, answer = read(solution)
        assert all(truths) and result == answer != solve(problem)[1]


def test_no_misconception_is_right_on_any_problem():
    for template in TEMPLATES:
        for operands in arithmetic.operand_pool(template, "test"):
            _, right = solve(arithmetic.fill_in(template, operands))
            results = [arithmetic.steps_of(procedure, operands)[-1][-1] for procedure in template.procedures]
            assert results[0] == right and right not in results[1:]


def test_a_slip_is_one_off_in_the_last_step():
    rng = random.Random(0)
    wrong = 0
    for _ in range(500):
        problem, solution = teach(rng, skill=dict.fromkeys(LEVELS, 1.0), slip_rate=1.0)
        truths, result, answer = read(solution)
        assert all(truths[:-1]) and result == answer
        assert abs(answer - solve(problem)[1]) <= 1  # 0 only at the ends of 0..99
        wrong += answer != solve(problem)[1]
    assert wrong > 450


def test_the_teacher_is_right_as_often_as_its_skill_says():
    rng = random.Random(0)
    lessons = [teach(rng, slip_rate=0.0) for _ in range(15_000)]
    right, seen = Counter(), Counter()
    for problem, solution in lessons:
        level, answer = solve(problem)
        seen[level] += 1
        right[level] += read(solution)[2] == answer
    for level, skill in TEACHER_SKILL.items():
        deviation = (skill * (1 - skill) / seen[level]) ** 0.5
        assert seen[level] > 2500
        assert right[level] / seen[level] == pytest.approx(skill, abs=4 * deviation)


def test_lessons_are_on_training_problems_alone():
    rng = random.Random(0)
    train = {
        arithmetic.fill_in(template, operands)
        for template in TEMPLATES
        for operands in arithmetic.operand_pool(template, "train")
    }
    assert all(teach(rng)[0] in train for _ in range(500))
