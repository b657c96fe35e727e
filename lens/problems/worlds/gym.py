r"""Makes a world of three tasks of reasoning-gym, with an imperfect teacher of each.

The package makes the problems and judges the answers (lens/problems/reasoning_gym.py, which also says how texts decide
the split). Its curricula begin where a tiny model ends, so the settings of each level stand here. The three tasks ask
for different things:

* ``leg_counting``: what words mean. How many legs have 2 bees, 1 sea slug?
* ``number_filtering``: doing as told. Keep (or remove) all numbers larger (or smaller) than 15 of a list.
* ``count_primes``: listing. How many primes are there between 12 and 31?

The teacher works through the parts one by one. By a misconception it gives crabs six legs, keeps what it should
remove, or takes 25 for a prime. How often depends on the level. No mistake is right by luck.
"""

from __future__ import annotations

import functools
import random
from ast import literal_eval
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from datasets import Dataset

from lens.errors import ConfigError
from lens.problems import reasoning_gym
from lens.problems.worlds.drawing import draw_by_level

LEVELS = (1, 2, 3, 4, 5)
VERSION = "0.1.25"  # of the package
MOST_LEGS = 8 * (14 + 10 + 10 + 10 + 8)  # the most that Level 5 can ask for: 8 each of the 5 with the most legs
MOST_VALUE = 99
# The generators' settings at Levels 1 to 5.
SETTINGS = {
    "leg_counting": [
        {"min_animals": kinds, "max_animals": kinds, "min_instances": 1, "max_instances": instances}
        for kinds, instances in ((2, 3), (2, 6), (3, 6), (4, 6), (5, 8))
    ],
    "number_filtering": [
        {"min_numbers": count, "max_numbers": count, "max_decimals": 0, "min_value": 0, "max_value": MOST_VALUE}
        for count in (2, 3, 4, 5, 6)
    ],
    "count_primes": [
        {"min_n": least, "max_n": most} for least, most in ((1, 40), (30, 70), (50, 95), (70, 120), (90, 150))
    ],
}
PER_LEVEL = {"train": 500, "validation": 100, "test": 100}  # problems of a task
TEACHER_SKILL = {1: 0.9, 2: 0.55, 3: 0.25, 4: 0.07, 5: 0.01}
MISCONCEPTION_SHARES = (0.7, 0.2, 0.1)  # which comes first depends on the level
LEGS = {
    **dict.fromkeys(("snake", "sea slug", "jellyfish", "flatworm", "leech"), 0),
    **dict.fromkeys(("chicken", "bird", "human", "duck"), 2),
    **dict.fromkeys(("dog", "cat", "cow", "horse", "lion", "elephant", "giraffe", "tiger", "deer", "sheep"), 4),
    "starfish": 5,
    **dict.fromkeys(("insect", "ant", "butterfly", "beetle", "bee", "wasp", "grasshopper", "cricket"), 6),
    **dict.fromkeys(("cockroach", "praying mantis", "firefly"), 6),
    **dict.fromkeys(("spider", "scorpion"), 8),
    **dict.fromkeys(("crab", "lobster", "shrimp"), 10),
    "woodlouse": 14,
}
TEACHING = (VERSION, SETTINGS, PER_LEVEL, TEACHER_SKILL, MISCONCEPTION_SHARES, LEGS, MOST_LEGS)
# Words of the problems beside numbers and animals.
TEXTS = (
    "Your task is to count how many legs there are in total when given a list of animals. "
    "Now, how many legs are there in total if you have",
    "Keep Remove all numbers larger smaller than in this list: Return the new list in the same format.",
    "Count how many prime numbers there are between and (inclusive) ?",
)


class Item(NamedTuple):
    """A problem as a row of the problem schema, its right answer, and what the package says of it."""

    row: dict[str, Any]
    answer: str
    metadata: dict[str, Any]


@functools.cache
def make_items(split: str) -> dict[int, list[Item]]:
    """Make all problems of one split, by level.

    Raises:
        ConfigError: the package is missing or of another version.
    """
    key = "dataset.gym"
    if (installed := reasoning_gym.find_version()) != VERSION:
        needs = f"needs the package reasoning-gym {VERSION}, and {installed or 'none'} is installed"
        raise ConfigError(f"{key}.source", "gym", f"{needs}: {reasoning_gym.INSTALL}")
    request = {"tasks": list(SETTINGS), "split": split, "per_level": PER_LEVEL[split], "item_seed": 0}
    request |= {"levels": None, "steps": None, "settings": SETTINGS, "time_limit_s": 60}
    found: dict[int, list[Item]] = {level: [] for level in LEVELS}
    for row in reasoning_gym.run_maker(request, key):
        answer, data = row["answer"].removeprefix("reasoning_gym://").split("\n//", 1)
        row |= {"problem": " ".join(row["problem"].split()), "source": "gym"}
        found[row["level"]].append(Item(row, answer, literal_eval(data)["metadata"]))
    return found


def find_pool(level: int, split: str) -> list[Item]:
    """Return the problems of one level and split."""
    return make_items(split)[level]


def load(
    split: str = "train",
    *,
    size: int | None = None,
    levels: Sequence[int] = LEVELS,
    seed: int = 0,
    key: str = "dataset.gym",
) -> Dataset:
    """Make the problems of one split. The splits share no text. See `World.load`."""
    drawn = draw_by_level(find_pool, split, size=size, levels=levels, known=LEVELS, seed=seed, key=key)
    return Dataset.from_list([item.row for item in drawn])


def name_animals(count: int, animal: str) -> str:
    """Return a number of animals as the package writes it, such as ``2 bees``."""
    return f"{count} {animal}{'s' if count > 1 else ''}"


def count_legs(animals: dict[str, int], legs: Callable[[str], int]) -> tuple[str, str]:
    """Add up the legs of each kind in turn: ``2 bees 12 = 12 , 1 dog 4 = 16 ,``. Return the steps and the answer."""
    total, steps = 0, []
    for animal, count in animals.items():
        own = count * legs(animal)
        total += own
        steps.append(f"{name_animals(count, animal)} {own} = {total} ,")
    return " ".join(steps), str(total)


def filter_numbers(numbers: Sequence[str], keeps: Callable[[int], bool]) -> tuple[str, str]:
    """Decide on each number in turn: ``12 no , 34 yes ,``. Return the steps and the answer."""
    kept = [number for number in numbers if keeps(int(number))]
    return " ".join(f"{number} {'yes' if keeps(int(number)) else 'no'} ," for number in numbers), str(kept)


def list_primes(start: int, end: int, is_prime: Callable[[int], bool]) -> tuple[str, str]:
    """List the primes: ``13 , 17 ,``. Return the list and how many there are."""
    primes = [str(number) for number in range(start, end + 1) if is_prime(number)]
    return " ".join(f"{prime} ," for prime in primes), str(len(primes))


def is_prime(number: int, divisors: Sequence[int] = (2, 3, 5, 7, 11)) -> bool:
    """Return whether a number up to 168 is prime; with fewer divisors, whether it seems so."""
    return number > 1 and all(number % divisor or number == divisor for divisor in divisors)


def legs_solutions(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the right solution, and wrong ones: at most 6 legs each, at most 4, the last animal missed."""
    animals = metadata["animals"]
    return [
        count_legs(animals, LEGS.__getitem__),
        count_legs(animals, lambda animal: min(LEGS[animal], 6)),
        count_legs(animals, lambda animal: min(LEGS[animal], 4)),
        count_legs(dict(list(animals.items())[:-1]), LEGS.__getitem__),
    ]


def filter_solutions(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the right solution, and wrong ones: what should go is kept, the last number is missed, all are kept."""
    numbers, limit = metadata["original_numbers"], int(metadata["filter_value"])
    keep, larger = metadata["operation"].startswith("keep"), metadata["operation"].endswith("larger")

    def keeps(number: int) -> bool:
        return (number > limit if larger else number < limit) == keep

    return [
        filter_numbers(numbers, keeps),
        filter_numbers(numbers, lambda number: not keeps(number)),
        filter_numbers(numbers[:-1], keeps),
        filter_numbers(numbers, lambda number: True),
    ]


def primes_solutions(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the right solution, and wrong ones: 25 is prime, the last numbers are missed, 19 and 29 are not prime."""
    start, end = metadata["start"], metadata["end"]
    return [
        list_primes(start, end, is_prime),
        list_primes(start, end, lambda number: is_prime(number, (2, 3))),
        list_primes(start, end, lambda number: is_prime(number) and number < end - 4),
        list_primes(start, end, lambda number: is_prime(number) and number % 10 != 9),
    ]


SOLUTIONS: dict[str, Callable[[dict[str, Any]], list[tuple[str, str]]]] = {
    "leg_counting": legs_solutions,
    "number_filtering": filter_solutions,
    "count_primes": primes_solutions,
}


def teach(rng: random.Random, skill: dict[int, float] | None = None) -> tuple[str, str]:
    """Give one lesson of the imperfect teacher on a training problem.

    Args:
        rng: the random number generator.
        skill: probability of a right solution, by level. None: TEACHER_SKILL.

    Returns:
        The problem and its solution, which is often wrong.
    """
    level = rng.choice(LEVELS)
    item = rng.choice(find_pool(level, "train"))
    right, *mistakes = SOLUTIONS[item.row["subject"]](item.metadata)
    steps, answer = right
    if rng.random() >= (TEACHER_SKILL if skill is None else skill)[level]:
        first = rng.choices(range(len(mistakes)), MISCONCEPTION_SHARES)[0] + level
        wrong = (mistakes[(first + turn) % len(mistakes)] for turn in range(len(mistakes)))
        one_more = steps, str(int(answer) + 1) if answer.isdigit() else "[]"
        steps, answer = next((made for made in wrong if made[1] != item.answer), one_more)
    return item.row["problem"], " ".join([*steps.split(), rf"\boxed{{ {answer} }}"])


def vocabulary() -> list[str]:
    """Return every word that a problem or a solution can hold, in a fixed order: the numbers first."""
    numbers = [str(number) for number in range(MOST_LEGS + 1)]
    values = numbers[: MOST_VALUE + 1]
    lists = [form.format(value) for form in ("['{}',", "'{}',", "'{}']", "['{}']") for value in values]
    words = {word for text in TEXTS for word in text.split()}
    for animal in LEGS:
        *before, last = animal.split()
        words |= {*before, *(f"{last}{plural}{end}" for plural in ("", "s") for end in ("", ",", "?"))}
    return numbers + lists + sorted((words | {"yes", "no", "=", ",", "[]", r"\boxed{", "}"}) - set(numbers))
