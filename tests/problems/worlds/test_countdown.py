"""Countdown: every puzzle by an exhaustive search of its own, and the teacher's mistakes by the verifier."""

from __future__ import annotations

import random
import re
from fractions import Fraction

import pytest

from lens.grading.judge import last_boxed
from lens.grading.verifiers.countdown import verify
from lens.problems import load_problems
from lens.problems.worlds import countdown
from lens.problems.worlds.countdown import ENOUGH, HOW_MANY, LEVELS, MISCONCEPTIONS, TEACHER_SKILL, find_pool, teach

# Five puzzles of each split: results of before can only be compared with if these remain.
PINNED = {
    "train": [f"countdown/{n}" for n in ("3-3-4-11/16", "5-9-12/57", "6-6-11-12/24", "10-12-12/34", "8-8-11-11/6")],
    "validation": [f"countdown/{n}" for n in ("5-7-9/3", "2-6-7-8/2", "3-5-5-5/2", "5-10-10/50", "2-8-10-10/92")],
    "test": [f"countdown/{n}" for n in ("4-9-10/3", "2-6-8-8/16", "3-4-6-11/2", "4-9-11/55", "2-9-10-11/97")],
}


def reach(numbers: list[Fraction], signs: str) -> set[Fraction]:
    """Every value that any expression with these numbers has, whole or not, whatever its brackets."""
    if len(numbers) == 1:
        return set(numbers)
    found = set()
    for i in range(len(numbers)):
        for j in range(len(numbers)):
            if i == j:
                continue
            a, b = numbers[i], numbers[j]
            rest = [number for place, number in enumerate(numbers) if place not in (i, j)]
            values = {a + b, a - b} | ({a * b} if "*" in signs else set())
            values |= {a / b} if "/" in signs and b else set()
            for value in values:
                found |= reach([*rest, value], signs)
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_puzzles_can_be_solved_with_the_operations_that_they_name(level: int):
    for puzzle in random.Random(0).sample(find_pool(level, "test"), 12):
        assert len(puzzle.numbers) == HOW_MANY[level] and list(puzzle.numbers) == sorted(puzzle.numbers)
        assert puzzle.target in reach([Fraction(number) for number in puzzle.numbers], ENOUGH[level])


def test_every_chain_solves_its_puzzle_and_no_easier_level_has_it():
    puzzles = [puzzle for level in LEVELS for puzzle in find_pool(level, "validation")]
    assert len({(puzzle.numbers, puzzle.target) for puzzle in puzzles}) == len(puzzles)
    for puzzle in puzzles:
        gold = countdown.make_problem(puzzle)["answer"].removeprefix("countdown://")
        for chain in puzzle.chains:
            steps = countdown.steps_of(chain)
            assert steps[-1][-1] == puzzle.target and all(1 <= step[-1] <= 99 for step in steps)
            assert set(chain[1::2]) <= set(ENOUGH[puzzle.level])
            assert verify(gold, countdown.write_expression(chain)) == "correct"
            value = eval(re.sub(r"\d+", r"Fraction(\g<0>)", countdown.write_expression(chain)), {"Fraction": Fraction})
            assert value == puzzle.target


def test_the_text_says_the_whole_puzzle():
    puzzle = next(puzzle for puzzle in find_pool(5, "train") if puzzle.numbers == (2, 3, 5, 8))
    text = countdown.write_problem(puzzle)
    assert text == f"Reach {puzzle.target} from 2 , 3 , 5 , 8 , each used once . Enough are + - * / ."


def test_splits_share_no_set_of_numbers():
    sets = {split: {puzzle.numbers for level in LEVELS for puzzle in find_pool(level, split)} for split in PINNED}
    assert not sets["train"] & sets["test"] and not sets["train"] & sets["validation"]
    assert not sets["validation"] & sets["test"] and min(map(len, sets.values())) > 150


def test_published_draws_stay_as_they_were():
    drawn = {split: load_problems("countdown", split=split, size=5)["id"][:] for split in PINNED}
    assert drawn == PINNED


# --- the teacher ---


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", sorted(countdown.MISTAKES))
def test_no_mistake_is_right_by_luck(level: int, name: str):
    for puzzle in random.Random(0).sample(find_pool(level, "train"), 300):
        gold = countdown.write_expression(puzzle.chains[0])
        for chain in puzzle.chains[:3]:
            steps, answer = countdown.make_mistake(puzzle, chain, name)
            assert countdown.steps_of(steps) is not None
            assert verify(gold, answer) == "incorrect", (puzzle, name, answer)


def test_a_misconception_is_what_its_name_says():
    puzzle = countdown.Puzzle(4, (3, 4, 5, 6), 38, ((3, "+", 5, "*", 4, "+", 6),))
    (chain,) = puzzle.chains
    made = {name: countdown.make_mistake(puzzle, chain, name)[1] for name in countdown.MISTAKES}
    assert made == {
        "stop_early": "( 3 + 5 ) * 4",
        "flip_last": "( 3 + 5 ) * 4 - 6",
        "reuse": "( 3 + 5 ) * 4 + 4",
        "forget_brackets": "3 + 5 * 4 + 6",
    }


def test_a_perfect_teacher_is_always_right_and_says_so_in_true_steps():
    rng, dead_ends = random.Random(0), 0
    puzzles = {countdown.write_problem(puzzle): puzzle for level in LEVELS for puzzle in find_pool(level, "train")}
    for _ in range(2000):
        problem, solution = teach(rng, skill=dict.fromkeys(LEVELS, 1.0))
        puzzle = puzzles[problem]
        assert verify(countdown.write_expression(puzzle.chains[0]), last_boxed(solution)) == "correct"
        *steps, end = solution.split(" , ")
        assert end.startswith(r"\boxed{ ")
        for step in steps:
            left, equals, result = step.partition(" = ")
            assert step == "no" or (equals and eval(left) == int(result))
        if "no" in steps:
            dead_ends += 1
            first = tuple(int(word) if word.isdigit() else word for word in steps[0].split(" = ")[0].split())
            assert all(chain[:3] != first for chain in puzzle.chains)
    assert dead_ends == pytest.approx(2000 * countdown.DEAD_END_RATE, abs=150)


def test_every_level_has_misconceptions_that_exist_and_a_skill():
    assert set(MISCONCEPTIONS) == set(TEACHER_SKILL) == set(LEVELS)
    assert {name for names in MISCONCEPTIONS.values() for name in names} == set(countdown.MISTAKES)
    assert {len(names) for names in MISCONCEPTIONS.values()} == {len(countdown.MISCONCEPTION_SHARES)}


def test_the_longest_solution_fits_the_world_s_answers():
    rng = random.Random(0)
    assert max(len(teach(rng)[1].split()) for _ in range(5000)) + 1 <= 38
