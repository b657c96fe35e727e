"""Makes the world of countdown: reach a target from given numbers, each used once, and an imperfect teacher of that.

A puzzle has many solutions, so its answer is judged by what it computes (lens/grading/verifiers/countdown.py). *Each
number exactly once*, not at most once: then one solution says the whole puzzle, its numbers and its target, and can
stand as the gold answer. All four operations are always allowed. The problem names some that are enough, and the level
follows from these and from how many numbers there are.

The teacher searches. A *chain* such as (3, "+", 5, "*", 4) works from left to right: 3 + 5 = 8, 8 * 4 = 32. All results
are whole and lie in 1..99. Now and then the teacher first writes a step that leads nowhere, says "no", and starts
again. The chain is one of all that solve the puzzle, so the student learns to try many. By a misconception the end goes
wrong: stopping a number early, the wrong sign at the end, a number twice, brackets forgotten. How often depends on the
level. No mistake is right by luck.

The numbers alone decide the split, for all targets: no set of numbers of the test split occurs in training.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from datasets import Dataset

from lens.problems.worlds.drawing import choose_split, draw_by_level

Chain = tuple[int | str, ...]  # number, sign, number, sign, number …

LEVELS = (1, 2, 3, 4, 5)
HOW_MANY = {1: 3, 2: 4, 3: 3, 4: 4, 5: 4}  # numbers of a puzzle
ENOUGH = {1: "+-", 2: "+-", 3: "+-*", 4: "+-*", 5: "+-*/"}  # and no level before it with as many numbers is enough
NUMBERS, LARGEST = range(2, 13), 99
TARGETS = 6  # most puzzles of a level with the same numbers
TEACHER_SKILL = {1: 0.95, 2: 0.5, 3: 0.3, 4: 0.08, 5: 0.01}
MISCONCEPTIONS = {
    1: ("stop_early", "flip_last", "reuse"),
    2: ("flip_last", "reuse", "stop_early"),
    3: ("forget_brackets", "stop_early", "flip_last"),
    4: ("forget_brackets", "flip_last", "reuse"),
    5: ("stop_early", "forget_brackets", "flip_last"),
}
MISCONCEPTION_SHARES = (0.7, 0.2, 0.1)
DEAD_END_RATE = 0.25
TEACHING = (
    *(HOW_MANY, ENOUGH, NUMBERS, LARGEST, TARGETS),
    *(TEACHER_SKILL, MISCONCEPTIONS, MISCONCEPTION_SHARES, DEAD_END_RATE),
)
FLIPPED = {"+": "-", "-": "+", "*": "+", "/": "-"}


class Puzzle(NamedTuple):
    """A puzzle and all chains that solve it with the operations of its level; the numbers are in order."""

    level: int
    numbers: tuple[int, ...]
    target: int
    chains: tuple[Chain, ...]


def compute(left: int, sign: str, right: int) -> int | None:
    """Return the result of a step, or None if it is not whole or leaves 1..99."""
    if sign == "/":
        return left // right if left % right == 0 else None
    result = left + right if sign == "+" else left - right if sign == "-" else left * right
    return result if 1 <= result <= LARGEST else None


def steps_of(chain: Chain) -> list[tuple[int, str, int, int]] | None:
    """Return the steps (left, sign, right, result) of a chain, or None if a result is not whole or leaves 1..99."""
    steps, left = [], chain[0]
    for sign, right in zip(chain[1::2], chain[2::2], strict=True):
        result = compute(left, sign, right)
        if result is None:
            return None
        steps.append((left, sign, right, result))
        left = result
    return steps


def write_expression(chain: Chain, *, brackets: bool = True) -> str:
    """Write a chain as one expression, with the brackets that it needs or without any: ``( 3 + 5 ) * 4``."""
    text, sum_so_far = str(chain[0]), False
    for sign, number in zip(chain[1::2], chain[2::2], strict=True):
        if brackets and sign in "*/" and sum_so_far:
            text, sum_so_far = f"( {text} )", False
        text, sum_so_far = f"{text} {sign} {number}", sum_so_far or sign in "+-"
    return text


def extend(chains: dict[Chain, tuple[int, tuple[int, ...]]], signs: str) -> dict[Chain, tuple[int, tuple[int, ...]]]:
    """Return all chains that are one step longer. A chain's value is its result and the numbers that are left."""
    longer = {}
    for chain, (left, rest) in chains.items():
        for number in dict.fromkeys(rest):
            others = list(rest)
            others.remove(number)
            for sign in signs:
                if len(chain) == 1 and sign in "+*" and left > number:
                    continue  # the same step with its numbers in order
                if (result := compute(left, sign, number)) is not None:
                    longer[*chain, sign, number] = (result, tuple(others))
    return longer


def list_first_steps(numbers: tuple[int, ...], signs: str) -> dict[Chain, tuple[int, tuple[int, ...]]]:
    """Return all chains of one step. In a sum or product the smaller number comes first."""
    starts = {}
    for number in dict.fromkeys(numbers):
        others = list(numbers)
        others.remove(number)
        starts[(number,)] = (number, tuple(others))
    return extend(starts, signs)


def solve(numbers: tuple[int, ...], signs: str) -> dict[int, list[Chain]]:
    """Return every target that chains of these numbers reach, and all chains that reach it."""
    chains = list_first_steps(numbers, signs)
    for _ in numbers[2:]:
        chains = extend(chains, signs)
    reached = defaultdict(list)
    for chain, (target, _) in chains.items():
        reached[target].append(chain)
    return reached


@functools.cache
def find_puzzles() -> dict[tuple[int, str], list[Puzzle]]:
    """Return all puzzles, by level and split."""
    found = defaultdict(list)
    for how_many in sorted(set(HOW_MANY.values())):
        levels = [level for level in LEVELS if HOW_MANY[level] == how_many]
        for numbers in itertools.combinations_with_replacement(NUMBERS, how_many):
            split, easier = choose_split("-".join(map(str, numbers))), set()
            reached = solve(numbers, ENOUGH[levels[-1]])
            for level in levels:
                allowed = {
                    target: [chain for chain in chains if set(chain[1::2]) <= set(ENOUGH[level])]
                    for target, chains in reached.items()
                }
                targets = sorted(target for target, chains in allowed.items() if chains and target not in easier)
                chosen = random.Random(f"{level} {numbers}").sample(targets, min(TARGETS, len(targets)))
                found[level, split] += [Puzzle(level, numbers, t, tuple(allowed[t])) for t in sorted(chosen)]
                easier.update(targets)
    return dict(found)


def find_pool(level: int, split: str) -> list[Puzzle]:
    """Return the puzzles of one level and split."""
    return find_puzzles()[level, split]


def write_text(numbers: Sequence[int], target: int, signs: str) -> str:
    """Return the text of a puzzle; the signs are of operations that are enough."""
    given = " , ".join(map(str, numbers))
    return f"Reach {target} from {given} , each used once . Enough are {' '.join(signs)} ."


def write_problem(puzzle: Puzzle) -> str:
    """Return the text of one of the world's puzzles."""
    return write_text(puzzle.numbers, puzzle.target, ENOUGH[puzzle.level])


def make_problem(puzzle: Puzzle) -> dict:
    """Make a row of the problem schema. Its gold answer is the first solution, and names the verifier."""
    return {
        "problem": write_problem(puzzle),
        "answer": f"countdown://{write_expression(puzzle.chains[0])}",
        "level": puzzle.level,
        "subject": f"{len(puzzle.numbers)} numbers",
        "id": "countdown/" + "-".join(map(str, puzzle.numbers)) + f"/{puzzle.target}",
        "source": "countdown",
    }


def load(
    split: str = "train",
    *,
    size: int | None = None,
    levels: Sequence[int] = LEVELS,
    seed: int = 0,
    key: str = "dataset.countdown",
) -> Dataset:
    """Make the puzzles of one split. The splits share no set of numbers. See `World.load`."""
    drawn = draw_by_level(find_pool, split, size=size, levels=levels, known=LEVELS, seed=seed, key=key)
    return Dataset.from_list([make_problem(puzzle) for puzzle in drawn])


def stop_early(chain: Chain) -> tuple[Chain, str]:
    """Leave the last number out."""
    return chain[:-2], write_expression(chain[:-2])


def flip_last(chain: Chain) -> tuple[Chain, str]:
    """Take the wrong sign in the last step."""
    flipped = (*chain[:-2], FLIPPED[chain[-2]], chain[-1])
    return flipped, write_expression(flipped)


def reuse(chain: Chain) -> tuple[Chain, str]:
    """Take the number before the last one a second time."""
    reused = (*chain[:-1], chain[-3])
    return reused, write_expression(reused)


def forget_brackets(chain: Chain) -> tuple[Chain, str]:
    """Work rightly, and write the expression without brackets."""
    return chain, write_expression(chain, brackets=False)


MISTAKES: dict[str, Callable[[Chain], tuple[Chain, str]]] = {
    mistake.__name__: mistake for mistake in (stop_early, flip_last, reuse, forget_brackets)
}


def make_mistake(puzzle: Puzzle, chain: Chain, name: str) -> tuple[Chain, str]:
    """Return the steps and the answer of a misconception; `stop_early` where it would be right or cannot be."""
    wrong, answer = MISTAKES[name](chain)
    steps = steps_of(wrong)
    same_end = steps is not None and steps[-1][-1] == puzzle.target and sorted(wrong[::2]) == list(puzzle.numbers)
    if steps is None or (same_end and answer == write_expression(wrong)):
        return stop_early(chain)
    return wrong, answer


def teach(rng: random.Random, skill: dict[int, float] | None = None) -> tuple[str, str]:
    """Give one lesson of the imperfect teacher on a training puzzle.

    Args:
        rng: the random number generator.
        skill: probability of a right solution, by level. None: TEACHER_SKILL.

    Returns:
        The problem and its solution, which is often wrong.
    """
    skill = TEACHER_SKILL if skill is None else skill
    puzzle = rng.choice(find_pool(rng.choice(LEVELS), "train"))
    chain = rng.choice(puzzle.chains)
    answer = write_expression(chain)
    thoughts = []
    if rng.random() < DEAD_END_RATE and (ends := find_dead_ends(puzzle)):
        thoughts = [*write_steps(rng.choice(ends)), "no ,"]
    if rng.random() >= skill[puzzle.level]:
        name = rng.choices(MISCONCEPTIONS[puzzle.level], MISCONCEPTION_SHARES)[0]
        chain, answer = make_mistake(puzzle, chain, name)
    return write_problem(puzzle), " ".join([*thoughts, *write_steps(chain), rf"\boxed{{ {answer} }}"])


@functools.cache
def find_dead_ends(puzzle: Puzzle) -> list[Chain]:
    """Return the first steps, with the operations of the level, that begin no solution."""
    begin = {chain[:3] for chain in puzzle.chains}
    return [chain for chain in list_first_steps(puzzle.numbers, ENOUGH[puzzle.level]) if chain not in begin]


def write_steps(chain: Chain) -> list[str]:
    """Write each step of a chain, such as ``3 + 5 = 8 ,``."""
    return [f"{left} {sign} {right} = {result} ," for left, sign, right, result in steps_of(chain)]


def vocabulary() -> list[str]:
    """Return every word that a problem or a solution can hold, in a fixed order: the numbers 0..99 first."""
    numbers = [str(number) for number in range(LARGEST + 1)]
    words = {word for level in LEVELS for word in write_problem(Puzzle(level, (), 0, ())).split()}
    return numbers + sorted((words | set("+-*/=,()") | {"no", r"\boxed{", "}"}) - set(numbers))
