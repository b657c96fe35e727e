"""Loading by name: files of every kind, the hub and its cache, draws, and errors that say what to mend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
from datasets.arrow_writer import ArrowWriter

from lens.errors import ConfigError
from lens.problems import load_problems
from lens.problems.math import MATH500_REVISION
from lens.problems.problem import FEATURES


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_all_kinds_of_files_give_the_same_problems(write, math_row, name):
    rows = [math_row("a", r"$\boxed{\$40}$"), math_row("b", r"$\boxed{2020-01-01}$")]
    assert load_problems("math", path=write(rows, name))["answer"][:] == [r"\$40", "2020-01-01"]


def test_a_file_that_changes_is_read_again(write, math_row):
    assert load_problems("math", path=write([math_row("a")]))["problem"][:] == ["a"]
    assert load_problems("math", path=write([math_row("b"), math_row("c")]))["problem"][:] == ["b", "c"]


def test_a_path_with_the_letters_of_a_pattern_is_taken_as_it_stands(write, math_row, tmp_path):
    (tmp_path / "set[1]").mkdir()
    assert len(load_problems("math", path=write([math_row()], "set[1]/rows.jsonl"))) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "no such file"),
        ("folder", "folder", "is a folder; give the file in it"),
        ("rows.csv", "problem,answer", r"must end in \.jsonl, \.json, \.parquet"),
        ("empty.jsonl", "", "is empty"),
        ("broken.jsonl", '{"problem": "a"}\n\n{"problem"', r"cannot be read as json: broken\.jsonl, line 3: Expecting"),
        ("blank.jsonl", "\n\n", "it has no rows"),
        ("text.jsonl", "no json at all\n", r"cannot be read as json: text\.jsonl, line 1: "),
        ("texts.jsonl", '"no object"\n', r"cannot be read as json: texts\.jsonl, line 1 is not an object"),
        ("bytes.jsonl", b"\xff", "cannot be read as json: .*utf-8"),
        ("deep.json", "[" * 100_000, r"cannot be read as json: deep\.json: "),
        ("nothing.json", "[]", "it has no rows"),
        ("broken.parquet", "no parquet at all", "cannot be read as parquet"),
    ],
)
def test_a_path_that_cannot_be_read_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as error:
        load_problems("math", path=str(path))
    assert (error.value.key, error.value.value) == ("dataset.math.path", str(path))


def test_files_of_different_kinds_are_refused(write, math_row, tmp_path):
    write([math_row("a")], "train-0.jsonl"), write([math_row("b")], "train-1.parquet")
    with pytest.raises(ConfigError, match="files of different kinds"):
        load_problems("math", path=str(tmp_path / "train-*"))


def test_a_missing_column_is_named_with_those_that_are_there(write, math500_row):
    with pytest.raises(ConfigError, match=r"rows\.jsonl.*no column type, which math needs; it has problem, answer"):
        load_problems("math", path=write([math500_row()]))


@pytest.mark.parametrize("column", ["problem", "level", "type", "solution"])
def test_a_row_that_lacks_a_column_is_named(write, math_row, column):
    broken = math_row("b")
    del broken[column]
    with pytest.raises(ConfigError, match=rf"rows\.jsonl.*row 2 .*no value for {column}"):
        load_problems("math", path=write([math_row("a"), broken]))


@pytest.mark.parametrize("levels", [[3, "Level 4"], ["Level 4", 3]])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_rows_may_give_their_levels_in_different_forms(write, math_row, name, levels):
    assert load_problems("math", path=write([math_row(level=level) for level in levels], name))["level"][:] == [
        int(str(level)[-1]) for level in levels
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (None, "no value for level"),
        (2.5, r"level is 2\.5, not"),
        (3.0, r"level is 3\.0, not"),
        ([4], r"level is \[4\], not"),
        ({"is": 4}, r"level is \{'is': 4\}, not"),
        (True, "level is True, not"),
        ("4", "level is '4', not"),
        (6, "level is 6, not"),
    ],
)
@pytest.mark.parametrize("first", [3, "Level 4"])
def test_a_level_of_another_type_is_named_with_its_file_and_line(tmp_path, math_row, first, bad, said, streaming):
    good, wrong = (json.dumps(math_row(str(level), level=level)) for level in (first, bad))
    (tmp_path / "train-0.jsonl").write_text(f"{good}\n")
    (tmp_path / "train-1.jsonl").write_text(f"\n\n{wrong}\n{good}\n")
    with pytest.raises(ConfigError, match=rf": row 2 \(train-1\.jsonl, line 3\): {said}") as error:
        load_problems("math", path=str(tmp_path / "train-*.jsonl"), streaming=streaming)
    assert error.value.key == "dataset.math.path"
    (tmp_path / "train-2.json").write_text(f"[{good}, {wrong}]")
    with pytest.raises(ConfigError, match=rf": row 2 \(train-2\.json, item 2\): {said}"):
        load_problems("math", path=str(tmp_path / "train-2.json"), streaming=streaming)


def test_a_level_of_another_type_far_down_is_named_too(tmp_path, math_row):
    """``datasets`` chooses the types of columns by the first 10 MB."""
    rows = [json.dumps(math_row(f"{number} {'x' * 6000}", level=3)) for number in range(2000)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, json.dumps(math_row("last", level=[3]))]))
    with pytest.raises(ConfigError, match=r"row 2001 \(rows\.jsonl, line 2001\): level is \[3\]"):
        load_problems("math", path=str(tmp_path / "rows.jsonl"))


def test_an_answer_keeps_its_text_beside_answers_that_are_numbers(write, math500_row):
    rows = [math500_row("a", r"\frac{1}{2}", unique_id="a"), math500_row("b", "7", unique_id="b")]
    assert load_problems("math500", path=write(rows))["answer"][:] == [r"\frac{1}{2}", "7"]
    with pytest.raises(ConfigError, match=r"row 3 \(rows\.jsonl, line 3\): the answer is 7, not a text"):
        load_problems("math500", path=write([*rows, math500_row("c", 7, unique_id="c")]))


def test_half_a_character_is_refused(write, math_row):
    with pytest.raises(ConfigError, match=r"row 2 \(rows\.jsonl, line 2\): .*surrogates not allowed"):
        load_problems("math", path=write([math_row("a"), math_row("\ud800")]))


def test_an_unknown_source_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"source='gsm8k'.*math, math500, dapo, .*arithmetic, countdown, gym$"):
        load_problems("gsm8k")


def test_an_unknown_option_fails(write, math_row):
    with pytest.raises(TypeError, match="drop_levels"):
        load_problems("math", path=write([math_row()]), drop_levels=True)


def test_a_draw_depends_on_the_seed_alone_and_keeps_the_order(write, math_row):
    path = write([math_row(str(number)) for number in range(100)])
    drawn = [load_problems("math", path=path, size=10, seed=seed)["problem"][:] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 10 and drawn[0] == sorted(drawn[0], key=int)


def test_where_fewer_problems_remain_all_are_taken_with_a_warning(write, math_row, caplog):
    path = write([math_row("a"), math_row("b"), math_row("c", "no box")])
    assert len(load_problems("math", path=path, size=3)) == 2
    assert "dataset.math.size=3: only 2 problems are available" in caplog.text


@pytest.mark.parametrize("size", [0, -1, 2.5, "all"])
def test_a_size_is_a_positive_number(write, math_row, size):
    with pytest.raises(ConfigError, match=r"dataset\.math\.size"):
        load_problems("math", path=write([math_row()]), size=size)


def test_arithmetic_has_the_same_form_and_no_file():
    pytest.importorskip("lens.problems.worlds.arithmetic")
    problems = load_problems("arithmetic", size=10, seed=1)
    assert len(problems) == 10 and problems.features == FEATURES
    with pytest.raises(ConfigError, match=r"dataset\.arithmetic\.path='x\.jsonl'"):
        load_problems("arithmetic", path="x.jsonl")


@pytest.mark.parametrize(
    ("source", "repo", "columns"),
    [
        ("math", "DigitalLearningGmbH/MATH-lighteval", "problem, level, type, solution"),
        ("math500", "HuggingFaceH4/MATH-500", "problem, answer, level, subject, unique_id"),
        ("dapo", "BytedTsinghua-SIA/DAPO-Math-17k", "prompt, reward_model.ground_truth, extra_info.index"),
        ("numina", "AI-MO/NuminaMath-1.5", "problem, answer, problem_type"),
    ],
)
def test_without_hub_and_cache_the_error_says_what_to_download_and_which_key_to_set(source, repo, columns):
    start = time.monotonic()
    with pytest.raises(ConfigError) as error:
        load_problems(source)
    assert time.monotonic() - start < 5
    assert error.value.key == f"dataset.{source}.path"
    for part in (repo, f"set dataset.{source}.path", columns):
        assert part in str(error.value)


def test_the_variable_hf_hub_offline_gives_that_error_too(tmp_path):
    code = "from lens.problems import load_problems; load_problems('math500', key='evaluation.sets.math500')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, timeout=60
    )
    assert "ConfigError: evaluation.sets.math500.path=None: HuggingFaceH4/MATH-500" in run.stderr


def cache(revision: str, rows: list[dict]) -> None:
    """Puts rows where ``datasets`` keeps what it once took from the hub."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "HuggingFaceH4___math-500" / "default" / "0.0.0" / revision
    folder.mkdir(parents=True)
    with ArrowWriter(path=str(folder / "math-500-test.arrow")) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    splits = datasets.splits.SplitDict(dataset_name="math-500")
    splits.add(datasets.SplitInfo("test", num_examples=len(rows)))
    info = datasets.DatasetInfo(
        features=datasets.Dataset.from_list(rows).features,
        splits=splits,
        config_name="default",
        dataset_name="math-500",
        version="0.0.0",
    )
    info.write_to_directory(str(folder))


@pytest.mark.parametrize("streaming", [False, True])
def test_without_the_hub_its_cache_serves(math500_row, streaming):
    cache(MATH500_REVISION, [math500_row()])
    assert load_problems("math500", streaming=streaming)["id"][:] == ["test/algebra/1.json"]


def test_a_cache_with_another_revision_is_not_taken_for_the_pinned_one(math500_row):
    cache("0" * 40, [math500_row()])
    with pytest.raises(ConfigError, match="cache holds HuggingFaceH4/MATH-500 at 0000") as error:
        load_problems("math500")
    assert (error.value.key, error.value.value) == ("dataset.math500.revision", MATH500_REVISION)
    assert len(load_problems("math500", revision="main")) == 1
