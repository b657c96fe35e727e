"""The world that docs/worlds.md makes: it is what a world has to be, and a run in it trains."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest

from lens.files import CONFIGS
from lens.grading.judge import last_boxed
from lens.models.tiny import TinyRecipe, make_lessons, make_tokenizer
from lens.problems import load_problems, worlds
from tests.support.command_line import metrics_of, run

PAGE = (CONFIGS.parent / "docs" / "worlds.md").read_text()


@pytest.fixture(scope="module")
def coins(tmp_path_factory) -> Path:
    """A folder with the page's two files, as a reader makes them."""
    folder = tmp_path_factory.mktemp("coins")
    for kind, name in (("python", "coins.py"), ("yaml", "configs/world/coins.yaml")):
        (example,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
        assert f"# lens/problems/worlds/{name}" in example or f"# {name}" in example
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(example)
    return folder


@pytest.fixture
def known(coins, monkeypatch):
    """The world as if its file lay in lens/problems/worlds/."""
    monkeypatch.setattr(worlds, "__path__", [*worlds.__path__, str(coins)])
    worlds.list_worlds.cache_clear()
    yield worlds.find_world("coins", "key")
    worlds.list_worlds.cache_clear()
    sys.modules.pop("lens.problems.worlds.coins")


def test_the_page_s_world_is_one(known):
    assert "coins" in worlds.list_worlds()
    problems = load_problems("coins")
    assert len(set(problems["problem"])) == len(problems) > 100
    assert not set(problems["problem"]) & set(load_problems("coins", split="test")["problem"])
    golds = dict(zip(problems["problem"], zip(problems["level"], problems["answer"], strict=True), strict=True))
    rng, right = random.Random(0), {1: [], 2: []}
    for problem, solution in (known.teach(rng) for _ in range(2000)):
        if problem in golds:
            level, gold = golds[problem]
            right[level].append(last_boxed(solution) == gold)
    shares = [sum(found) / len(found) for found in right.values()]
    assert shares == pytest.approx(list(known.SKILL.values()), abs=0.06)  # four standard deviations
    tokenizer = make_tokenizer("coins")
    ids, _ = make_lessons(tokenizer, random.Random(0), 200, "coins")
    assert tokenizer.unk_token_id not in ids
    assert TinyRecipe(world="coins").key() != TinyRecipe().key()


def test_a_run_in_the_page_s_world_trains(coins, tmp_path):
    """By the page's first command, on a smaller model."""
    assert "python scripts/train.py world=coins debug=fast model.recipe.steps=20" in PAGE
    command = ["world=coins", "debug=fast", "model.recipe.steps=20", "model.recipe.batch_size=16"]
    places = [f"hydra.searchpath=[file://{coins}/configs]", f"outputs={tmp_path}", f"hydra.run.dir={tmp_path}/run"]
    result = run("tests/support/in_world.py", coins, *command, *places, folder=tmp_path / "logs")
    assert result.code == 0, result.stderr
    evaluated = [line for line in metrics_of(tmp_path / "run") if "eval/coins/pass@1" in line]
    assert len(evaluated) == 2 and "eval/coins/level_2/pass@1" in evaluated[0]
