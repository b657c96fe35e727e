"""Puzzles of reasoning-gym: levels by the curriculum, splits that share nothing, and bad input in one line."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from datasets import Dataset
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.grading.verifiers import split_gold
from lens.problems import reasoning_gym_maker as maker
from lens.problems.problem import FEATURES, fingerprint
from lens.problems.reasoning_gym import load_reasoning_gym
from tests.support.reasoning_gym import LEVELS, TASKS, VERSION, make_puzzles, needs_reasoning_gym

pytestmark = needs_reasoning_gym


@pytest.fixture(scope="module")
def splits() -> dict:
    """A few puzzles of each split, each from another seed of the generators."""
    made = make_here("validation", item_seed=1)
    return {"train": make_puzzles("train", 0), "test": make_puzzles("test", 2), "validation": made}


def make_here(split: str, item_seed: int) -> Dataset:
    """The puzzles as the other process makes them, made in this one, whose hash seed is another."""
    request = {"tasks": TASKS, "split": split, "per_level": 6, "levels": None, "steps": None, "time_limit_s": 0}
    found = [row for row in maker.answer(**request, item_seed=item_seed) if "at" not in row]
    return Dataset.from_list(found, features=FEATURES)


def test_a_set_has_as_many_puzzles_of_each_task_and_level(splits):
    for puzzles in splits.values():
        assert puzzles.features == FEATURES
        found = list(zip(puzzles["subject"], puzzles["level"], strict=True))
        assert {pair: found.count(pair) for pair in found} == {(task, n): 6 for task in TASKS for n in LEVELS[task]}
        assert len(set(puzzles["id"])) == len(puzzles)


def test_splits_share_no_text_whatever_the_seed(splits):
    texts = {split: {fingerprint(text) for text in puzzles["problem"]} for split, puzzles in splits.items()}
    assert [len(found) for found in texts.values()] == [len(puzzles) for puzzles in splits.values()]
    assert not (texts["train"] & texts["validation"] or texts["train"] & texts["test"])
    assert not texts["validation"] & texts["test"]
    for split, found in texts.items():
        assert {maker.split_of(text) for text in found} == {split}


def test_the_same_arguments_give_the_same_puzzles_and_another_seed_gives_others(splits):
    assert make_here("test", 2).to_list() == splits["test"].to_list()
    assert not set(splits["test"]["id"][-6:]) & set(make_here("test", 3)["id"])


@given(st.integers(1, 40))
def test_the_first_step_is_level_1_and_the_last_is_level_5(number: int):
    spread = maker.spread_steps(number)
    assert set(spread) <= set(maker.LEVELS) and len(spread) == min(number, 5)
    assert spread[1] == 0 and (number == 1 or spread[5] == number - 1)
    steps = [spread[level] for level in sorted(spread)]
    assert steps == sorted(set(steps)) and (number > 5 or steps == list(range(number)))


def test_levels_are_steps_of_the_tasks_own_curriculum():
    """As the package's source has them: from 2 to 12 terms in eleven steps, and words from 3 to 9 letters."""
    from reasoning_gym.arithmetic.chain_sum import ChainSumCurriculum

    assert ChainSumCurriculum().attributes["num_terms"].levels == list(range(2, 13))
    sums = maker.find_levels("chain_sum", None, None)
    assert [(n, s.min_terms, s.max_terms) for n, s in sums.items()] == [
        *((1, 2, 2), (2, 4, 4), (3, 7, 7), (4, 10, 10), (5, 12, 12))
    ]
    assert {n: s.max_digits for n, s in sums.items()} == {1: 1, 2: 3, 3: 6, 4: 9, 5: 10}
    words = maker.find_levels("spell_backward", None, None)  # no word has 11 letters, so four of five steps are left
    assert {n: (s.min_word_len, s.max_word_len) for n, s in words.items()} == {
        1: (3, 3),
        2: (5, 5),
        4: (7, 7),
        5: (9, 9),
    }
    chosen = maker.find_levels("chain_sum", [1, 3], [0, 1, 2])
    assert {n: s.max_terms for n, s in chosen.items()} == {1: 2, 3: 4}


def test_the_docs_say_the_levels_of_the_tasks_that_they_list():
    page = (CONFIGS.parent / "docs" / "data.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| ([\d, ]+) \|", page, re.MULTILINE)
    assert len(rows) >= 5
    for task, steps, levels in rows:
        assert len(maker.list_steps(task)) == int(steps), task
        assert ", ".join(map(str, sorted(maker.find_levels(task, None, None)))) == levels, task


def test_a_gold_answer_shows_a_right_answer(splits):
    row = next(row for row in splits["test"] if row["subject"] == "chain_sum" and row["level"] == 1)
    left, sign, right = re.search(r"(\d+) ([-+]) (\d+) =$", row["problem"]).groups()
    gold = split_gold(row["answer"])
    assert gold.verifier == "reasoning_gym" and gold.answer == str(int(left) + int(sign + right))
    assert "'task': 'chain_sum'" in gold.data


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("chainsum", "is no task of reasoning-gym; close names: chain_sum, decimal_chain_sum"),
        ("puzzle24", "its verifier runs an answer as Python code"),
        ("coin_flip", "its verifier calls 0.55 right where 0.5 is"),
        ("composite", "no levels"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused(task: str, said: str):
    with pytest.raises(maker.Refused, match=said) as refused:
        maker.check_tasks(["chain_sum", task])
    assert refused.value.args[:2] == ("tasks", task)


def test_levels_and_steps_that_a_task_lacks_are_refused():
    with pytest.raises(maker.Refused, match=r"spell_backward has: 1, 2, 4, 5 \(its curriculum has 4 steps\)"):
        maker.find_levels("spell_backward", [1, 3], None)
    with pytest.raises(maker.Refused, match="numbers from 0 to 10, the steps of chain_sum's curriculum"):
        maker.find_levels("chain_sum", None, [0, 11])
    for levels in ([], [1, 1], [6]):
        with pytest.raises(maker.Refused, match="must be different levels"):
            maker.find_levels("chain_sum", levels, None)


def test_what_the_process_says_becomes_one_line(monkeypatch):
    valid = {"tasks": ["chain_sum"], "version": VERSION}
    for given_, key, said in (
        ({"tasks": ["chainsum"]}, "tasks='chainsum'", "is no task of reasoning-gym"),
        ({"time_limit_s": 0.001, "split": "test"}, "time_limit_s=0.001", "200 problems of chain_sum"),
        ({"split": "dev"}, "split='dev'", "must be one of train, validation, test"),
        ({"version": "0.1.24"}, "version='0.1.24'", f"must be {VERSION}"),
        ({"per_level": 0}, "per_level=0", "must be an integer >= 1"),
        ({"path": "x.jsonl"}, "path='x.jsonl'", "must be null"),
        ({"tasks": []}, "tasks=[]", "must be different tasks"),
    ):
        with pytest.raises(ConfigError) as refused:
            load_reasoning_gym(**(valid | given_), key="dataset.gym")
        assert str(refused.value).startswith(f"dataset.gym.{key}: ") and said in str(refused.value)

    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match="needs the package reasoning-gym"):
        load_reasoning_gym(**valid)


def test_evaluation_takes_the_tasks_of_training():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        chosen = ["+dataset=reasoning_gym", "+evaluation=reasoning_gym"]
        config = compose(overrides=[*chosen, "dataset.reasoning_gym.tasks=[gcd]", "dataset.reasoning_gym.steps=[0,1]"])
        alone = compose(overrides=["+evaluation=reasoning_gym"])
    here, there = config.evaluation.sets.reasoning_gym, alone.evaluation.sets.reasoning_gym
    assert (here.tasks, here.steps) == (["gcd"], [0, 1])
    assert (there.tasks, there.steps) == (["chain_sum", "spell_backward", "family_relationships"], None)
    assert config.dataset.reasoning_gym.version == here.version == VERSION
