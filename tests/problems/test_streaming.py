"""Rows that stream by give the same problems, log lines and errors as rows from the cache, and leave no copy there."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import datasets
import pytest

from lens.errors import ConfigError
from lens.problems import load_mixture, load_problems


@pytest.fixture
def rows(math_row, math500_row, dapo_row, numina_row) -> dict[str, list[dict]]:
    """Rows of each source with something to drop, more than a batch of them, in an order that batches cut through."""
    dapo = [dapo_row(str(number), str(number % 7), index=str(number)) for number in range(700)]
    dapo += [dapo_row("twice", "1", index="x"), dapo_row("twice", "2", index="y"), dapo_row("求 $1 + 1$", index="z")]
    kinds = [
        {"answer": "proof"},
        {"answer": "notfound"},
        {"question_type": "MCQ"},
        {"problem_is_valid": "Incomplete"},
        {"solution_is_valid": None},
        {"answer": None},
    ]
    levels = ["Level 1", "Level 5", "Level ?"]
    boxes = [r"$\boxed{7}$", "nothing in a box", r"\boxed 2$"]
    return {
        "math": [math_row(str(n), boxes[n % 3], levels[n // 3 % 3]) for n in range(2500)],
        "math500": [math500_row(str(n), str(n), n % 5 + 1, f"id-{n}") for n in range(500)],
        "dapo": dapo * 5,
        "numina": [numina_row(str(n), **(kinds[n % 9] if n % 9 < len(kinds) else {})) for n in range(2500)],
    }


def cached_files() -> list[Path]:
    return list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
@pytest.mark.parametrize("source", ["math", "math500", "dapo", "numina"])
def test_streaming_changes_nothing_but_the_cache(rows, write, caplog, source, name):
    caplog.set_level(logging.INFO, "lens")
    path = write(rows[source], name)
    streamed = load_problems(source, path=path, streaming=True)
    lines = caplog.messages[:]
    assert cached_files() == []
    caplog.clear()
    cached = load_problems(source, path=path)
    assert (cached_files() != []) == name.endswith(".parquet")  # JSON files are read row by row, without a copy
    assert len(cached) > 0 and streamed.features == cached.features
    assert streamed.to_list() == cached.to_list()
    assert lines == caplog.messages and len(lines) == 1 and f"{len(rows[source]):,} rows read" in lines[0]


def test_a_draw_from_several_files_is_the_same(rows, write, tmp_path):
    for part, start in enumerate(range(0, len(rows["dapo"]), 900)):
        write(rows["dapo"][start : start + 900], f"train-{part}.parquet")
    path = str(tmp_path / "train-*.parquet")
    drawn = [load_problems("dapo", path=path, size=50, seed=3, streaming=streaming) for streaming in (True, False)]
    assert drawn[0].to_list() == drawn[1].to_list() and len(drawn[0]) == 50


def test_a_mixture_may_stream_one_source_and_cache_another(rows, write):
    math, dapo = write(rows["math"], "math.jsonl"), write(rows["dapo"], "dapo.jsonl")

    def load(streaming: bool):
        sources = {
            "math": {"source": "math", "path": math, "size": 100},
            "dapo": {"source": "dapo", "path": dapo, "size": 100, "streaming": streaming},
        }
        return load_mixture({}, seed=1, **sources)[0].to_list()

    assert load(True) == load(False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gone.jsonl", None),
        ("empty.jsonl", ""),
        ("broken.jsonl", '{"problem": "a"}\n{"problem"'),
        ("blank.jsonl", "\n\n"),
        ("text.jsonl", "no json at all\n"),
        ("nothing.json", "[]"),
        ("broken.parquet", "no parquet at all"),
        ("columns.jsonl", '{"problem": "a", "level": 1}\n'),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_key_and_path(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"no such file|is empty|cannot be read|has no column type") as error:
        load_problems("math", path=str(path), streaming=True)
    assert (error.value.key, error.value.value) == ("dataset.math.path", str(path))


def test_errors_name_the_row_in_the_file(rows, write, math_row, dapo_row):
    broken = write([*rows["math"], math_row("b", level="Level 6")], "math.jsonl")
    with pytest.raises(ConfigError, match=r"math\.jsonl.*row 2501 .*level is 'Level 6'"):
        load_problems("math", path=broken, streaming=True)
    broken = write([*rows["dapo"], dapo_row("new", index="new") | {"prompt": []}], "dapo.jsonl")
    with pytest.raises(ConfigError, match=rf"dapo\.jsonl.*row {len(rows['dapo']) + 1} .*not one chat message"):
        load_problems("dapo", path=broken, streaming=True)


@pytest.mark.parametrize("source", ["math", "math500", "dapo", "numina"])
def test_without_a_hub_the_error_says_which_key_to_set(source):
    with pytest.raises(ConfigError, match=re.escape(f"set dataset.{source}.path")):
        load_problems(source, streaming=True)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_streaming_is_true_or_false(write, math_row, value):
    with pytest.raises(ConfigError, match=r"dataset\.math\.streaming=.*true or false"):
        load_problems("math", path=write([math_row()]), streaming=value)
