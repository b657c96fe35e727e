"""The world of reasoning-gym's tasks: solutions by the package and by hand, and mistakes that stay mistakes."""

from __future__ import annotations

import random
from ast import literal_eval
from collections import Counter, defaultdict

import pytest

from lens.errors import ConfigError
from lens.grading.judge import last_boxed
from lens.grading.verifiers import split_gold, verify
from lens.problems import load_problems
from lens.problems.worlds import gym
from lens.problems.worlds.gym import LEVELS, SETTINGS, SOLUTIONS, find_pool, teach
from tests.support.reasoning_gym import needs_reasoning_gym

pytestmark = needs_reasoning_gym


def judge(item: gym.Item, answer: str) -> float:
    return verify(item.row["answer"], answer).score


def test_legs_are_the_packages():
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    assert gym.LEGS == ANIMALS


def test_primes_are_those_of_a_sieve():
    composite = {multiple for number in range(2, 13) for multiple in range(2 * number, 169, number)}
    assert [n for n in range(169) if gym.is_prime(n)] == [n for n in range(2, 169) if n not in composite]


@pytest.mark.parametrize("task", sorted(SETTINGS))
def test_right_solutions_are_right_and_mistakes_are_judged_wrong_unless_they_say_the_same(task: str):
    items = [item for level in LEVELS for item in find_pool(level, "test") if item.row["subject"] == task]
    assert len(items) == 500
    wrong = 0
    for item in items:
        (_, answer), *mistakes = SOLUTIONS[task](item.metadata)
        assert answer == item.answer and judge(item, answer) == 1
        for _, other in mistakes:
            assert (judge(item, other) == 1) == (other == item.answer)
            wrong += other != item.answer
    assert wrong > 800  # of 1,500


@pytest.mark.parametrize("task", sorted(SETTINGS))
def test_every_level_has_the_settings_it_says(task: str):
    names = {"leg_counting": "animals", "number_filtering": "original_numbers"}
    for level, settings in enumerate(SETTINGS[task], start=1):
        for item in (item for item in find_pool(level, "validation") if item.row["subject"] == task):
            if task == "count_primes":
                assert settings["min_n"] <= item.metadata["start"] <= item.metadata["end"] <= settings["max_n"]
            else:
                sizes = [value for name, value in settings.items() if name in ("max_animals", "max_numbers")]
                assert [len(item.metadata[names[task]])] == sizes


def test_solutions_are_what_a_pupil_would_write():
    legs = gym.legs_solutions({"animals": {"bee": 2, "sea slug": 1, "crab": 1}})
    assert legs[0] == ("2 bees 12 = 12 , 1 sea slug 0 = 12 , 1 crab 10 = 22 ,", "22")
    assert [answer for _, answer in legs[1:]] == ["18", "12", "12"]
    filtered = gym.filter_solutions(
        {"original_numbers": ["12", "34", "15"], "filter_value": "15", "operation": "remove_larger"}
    )
    assert filtered[0] == ("12 yes , 34 no , 15 yes ,", "['12', '15']")
    assert [answer for _, answer in filtered[1:]] == ["['34']", "['12']", "['12', '34', '15']"]
    primes = gym.primes_solutions({"start": 14, "end": 29})
    assert primes[0] == ("17 , 19 , 23 , 29 ,", "4")
    assert [answer for _, answer in primes[1:]] == ["5", "3", "2"]  # 25; without 29; without 19 and 29


def test_no_lesson_of_a_teacher_who_knows_nothing_is_right():
    rng = random.Random(0)
    items = {item.row["problem"]: item for level in LEVELS for item in find_pool(level, "train")}
    for _ in range(3000):
        problem, solution = teach(rng, skill=dict.fromkeys(LEVELS, 0.0))
        assert judge(items[problem], last_boxed(solution)) < 1, (problem, solution)
    for _ in range(1000):
        problem, solution = teach(rng, skill=dict.fromkeys(LEVELS, 1.0))
        assert judge(items[problem], last_boxed(solution)) == 1


def test_gold_answers_hold_what_the_verifier_needs():
    problems = load_problems("gym", split="test", size=30)
    for problem, task, gold in zip(problems["problem"], problems["subject"], problems["answer"], strict=True):
        _, answer, data = split_gold(gold)
        assert literal_eval(data)["task"] == task and len(problem.split()) <= 45
        assert verify(gold, answer).verdict == "correct"


def test_a_guess_is_right_as_seldom_as_the_page_says():
    """A guess is what the teacher says to another problem of the same task and level."""
    rng, items, said = random.Random(0), {}, defaultdict(Counter)
    for level in LEVELS:
        items |= {item.row["problem"]: item for item in find_pool(level, "train")}
    for problem, solution in (teach(rng) for _ in range(15_000)):
        row = items[problem].row
        said[row["subject"], row["level"]][last_boxed(solution)] += 1
    asked = defaultdict(Counter)
    for item in items.values():
        asked[item.row["subject"], item.row["level"]][item.answer] += 1
    luck = {
        place: sum(share * said[place][answer] for answer, share in answers.items()) / 500 / said[place].total()
        for place, answers in asked.items()
    }
    assert all(0.09 < luck["count_primes", level] < 0.135 for level in LEVELS)
    legs = [luck["leg_counting", level] for level in LEVELS]
    assert legs == sorted(legs, reverse=True) and 0.01 < legs[-1] < 0.02 < 0.05 < legs[0] < 0.075
    assert all(luck["number_filtering", level] < 0.015 for level in LEVELS)


def test_another_version_of_the_package_is_refused(monkeypatch):
    monkeypatch.setattr(gym, "VERSION", "0.1.0")
    gym.make_items.cache_clear()
    with pytest.raises(
        ConfigError, match=r"dataset\.gym\.source='gym': needs the package reasoning-gym 0\.1\.0, and 0\.1\.25"
    ):
        gym.load("test", size=5)
    gym.make_items.cache_clear()
