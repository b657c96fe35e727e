"""What every world offers: the same problems everywhere, splits that share none, words that the tiny model knows."""

from __future__ import annotations

import random
import re
from collections import Counter
from importlib import import_module

import pytest

from lens.errors import ConfigError
from lens.grading.judge import last_boxed
from lens.grading.verifiers import split_gold
from lens.problems import load_problems
from lens.problems.problem import FEATURES
from lens.problems.worlds import World, find_world, list_worlds
from lens.problems.worlds.drawing import SPLIT_SHARES
from tests.support.reasoning_gym import worlds_that_can_be_made

SPLITS = tuple(SPLIT_SHARES)
each_world = pytest.mark.parametrize("name", worlds_that_can_be_made(list_worlds()))


def test_worlds_are_the_modules_that_offer_what_a_world_offers():
    assert list_worlds() == ["arithmetic", "countdown", "gym"]
    assert all(isinstance(find_world(name, "key"), World) for name in list_worlds())


@pytest.mark.parametrize("name", ["drawing", "arithmetic_templates", "nowhere", "../x", ""])
def test_what_is_no_world_is_refused_with_those_there_are(name: str):
    with pytest.raises(
        ConfigError, match=r"model\.recipe\.world=.*: must be one of arithmetic, countdown, gym, the worlds"
    ):
        find_world(name, "model.recipe.world")


@each_world
def test_problems_have_the_schema_and_their_levels_in_equal_parts(name: str):
    world, ids = find_world(name, "key"), {}
    for split in SPLITS:
        problems = load_problems(name, split=split)
        assert problems.features == FEATURES and set(problems["source"]) == {name}
        assert len(set(Counter(problems["level"]).values())) == 1 and set(problems["level"]) == set(world.LEVELS)
        assert len(set(problems["problem"])) == len(set(problems["id"])) == len(problems) >= 60 * len(world.LEVELS)
        ids[split] = set(problems["problem"])
    assert (
        not ids["train"] & ids["test"] and not ids["train"] & ids["validation"] and not ids["validation"] & ids["test"]
    )
    drawn = [load_problems(name, split="test", size=60, seed=seed)["id"][:] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@each_world
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"split": "dev"}, r"split='dev': must be one of train, validation, test"),
        ({"levels": [1, 6]}, r"levels=\[1, 6\]: must be different levels out of 1\.\.5"),
        ({"levels": []}, r"levels=\[\]: must be different levels"),
        ({"size": 7}, r"size=7: must be a multiple of 5 from 5 to \d+ for split train"),
        ({"size": 5_000_000}, r"size=5000000: must be a multiple of 5 from 5 to \d+ for split train"),
        ({"path": "x.jsonl"}, r"path='x\.jsonl': must be null"),
    ],
)
def test_what_a_world_lacks_is_refused(name: str, given: dict, says: str):
    with pytest.raises(ConfigError, match=rf"^dataset\.{name}\.{says}"):
        load_problems(name, **given)


@each_world
def test_the_tiny_model_knows_every_word(name: str):
    world, rng = find_world(name, "key"), random.Random(0)
    words = world.vocabulary()
    assert len(words) == len(set(words)) and words == world.vocabulary()
    texts = [text for split in SPLITS for text in load_problems(name, split=split)["problem"]]
    texts += [text for _ in range(2000) for text in world.teach(rng)]
    assert {word for text in texts for word in text.split(" ")} <= set(words)


@each_world
def test_lessons_are_decided_by_their_seed_and_leave_the_other_splits_alone(name: str):
    world = find_world(name, "key")
    first, again = ([world.teach(rng) for _ in range(1000)] for rng in (random.Random(3), random.Random(3)))
    assert first == again
    held_out = {text for split in ("validation", "test") for text in load_problems(name, split=split)["problem"]}
    assert not held_out & {problem for problem, _ in first}
    assert all(last_boxed(solution) for _, solution in first)


def is_right(gold: str, answer: str) -> bool:
    """Whether the verifier that the gold answer names calls an answer right; a number without one is compared."""
    verifier, text, *data = split_gold(gold)
    if verifier is None:
        return int(text) == int(answer)
    data = [part for part in data if part is not None]
    return import_module(f"lens.grading.verifiers.{verifier}").verify(text, answer, *data) in ("correct", 1)


@each_world
def test_a_gold_answer_is_right_and_the_teacher_is_right_less_often_from_level_to_level(name: str):
    world, rng = find_world(name, "key"), random.Random(0)
    problems = load_problems(name, split="train")
    golds = dict(zip(problems["problem"], zip(problems["level"], problems["answer"], strict=True), strict=True))
    assert all(is_right(gold, split_gold(gold)[1]) for gold in problems["answer"][:100])
    right, seen = Counter(), Counter()
    for problem, solution in (world.teach(rng) for _ in range(6000)):
        if problem in golds:
            level, gold = golds[problem]
            seen[level] += 1
            right[level] += is_right(gold, last_boxed(solution))
    shares = [right[level] / seen[level] for level in world.LEVELS]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) == len(shares)
    assert shares[0] > 0.8 and shares[-1] < 0.05


@each_world
def test_what_the_teaching_depends_on_is_plain(name: str):
    """A model's folder is named by its repr, which must say values and no addresses."""
    assert not re.search(r"0x[0-9a-f]{6,}|<function|<class", repr(find_world(name, "key").TEACHING))
