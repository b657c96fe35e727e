"""Choosing problems by level, and by what a model solved sometimes."""

from __future__ import annotations

import pandas as pd
import pytest

from lens.errors import ConfigError
from lens.problems import load_problems


@pytest.fixture
def path(write, math_row) -> str:
    levels = ("Level 1", "Level 2", "Level 1", "Level 5", "Level ?")
    return write([math_row(name, level=level) for name, level in zip("abcde", levels, strict=True)])


def test_levels_choose_problems(path):
    assert load_problems("math", path=path)["problem"][:] == [*"abcde"]
    assert load_problems("math", path=path, levels=[1, 5])["problem"][:] == [*"acd"]
    with pytest.raises(ConfigError, match=r"dataset\.math\.levels=\[3\]: must be null, or levels .*: 1, 2, 5"):
        load_problems("math", path=path, levels=[3])


@pytest.mark.parametrize("as_folder", [True, False])
def test_an_evaluation_chooses_what_was_solved_sometimes(path, tmp_path, as_folder):
    ids = load_problems("math", path=path)["id"][:]
    rows = [{"id": name, "n": 4, "correct": correct} for name, correct in zip(ids, (0, 1, 3, 4), strict=False)]
    pd.DataFrame(rows).to_parquet(tmp_path / "evaluation.parquet")  # e was not asked
    folder = str(tmp_path if as_folder else tmp_path / "evaluation.parquet")
    assert load_problems("math", path=path, solved_in=folder)["problem"][:] == [*"bc"]
    assert load_problems("math", path=path, solved_in=folder, levels=[1], size=1)["problem"][:] == ["c"]
    with pytest.raises(ConfigError, match=r"solved_in=.*: must be an evaluation with problems solved sometimes"):
        load_problems("math", path=path, solved_in=folder, levels=[5])


def test_what_is_no_evaluation_is_refused(path, tmp_path):
    (tmp_path / "other.parquet").write_text("no parquet")
    for name in ("", "nowhere", "other.parquet"):
        with pytest.raises(ConfigError, match=r"dataset\.math\.solved_in=.*: must be the folder of an evaluation"):
            load_problems("math", path=path, solved_in=str(tmp_path / name))


def test_a_table_without_the_columns_of_an_evaluation_is_refused(path, tmp_path):
    pd.DataFrame({"id": ["a"]}).to_parquet(tmp_path / "evaluation.parquet")
    with pytest.raises(ConfigError, match="must be the folder of an evaluation"):
        load_problems("math", path=path, solved_in=str(tmp_path))
