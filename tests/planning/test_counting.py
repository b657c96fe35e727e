"""How many problems a plan counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lens.errors import ConfigError
from lens.planning.counting import num_problems
from tests.support.reasoning_gym import needs_reasoning_gym


def count(**node: object) -> int:
    return num_problems(OmegaConf.create({"seed": 3, "only": {"split": "train", "size": None, **node}}))


def test_published_row_counts_need_no_file():
    assert count(source="math") == 7_500
    assert count(source="math", size=100) == 100
    assert count(source="math500", split="test", size=1_000) == 500


def test_what_is_here_is_counted_by_loading_it(tmp_path: Path):
    puzzles = tmp_path / "puzzles.jsonl"
    puzzles.write_text("".join(json.dumps({"numbers": [n, 2], "target": n + 2}) + "\n" for n in range(3, 10)))
    assert count(source="countdown_file", path=str(puzzles)) == 7
    assert count(source="countdown_file", path=str(puzzles), size=5) == 5
    assert count(source="arithmetic", levels=[1]) == 1_773
    assert count(source="arithmetic", size=20) == 20


@needs_reasoning_gym
def test_puzzles_of_the_package_are_counted_by_making_them():
    assert count(source="reasoning_gym", tasks=["spell_backward"], per_level=4, levels=[1, 2], version="0.1.25") == 8


def test_an_unknown_source_or_split_is_refused():
    with pytest.raises(ConfigError, match="must be one of math"):
        count(source="maths")
    with pytest.raises(ConfigError, match=r"dataset\.math\.split='validation'"):
        count(source="math", split="validation")
