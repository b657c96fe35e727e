"""Stored answers graded again: changes are counted, the stored evaluation stays, and the new one reads alike."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from lens.commands.regrade import make_settings, regrade
from lens.errors import ConfigError
from lens.evaluation.scores import count_per_problem
from lens.files import CONFIGS
from lens.grading.judge import REWARD_SETTINGS
from lens.grading.pool import Grader
from tests.support.command_line import run

# problem, level, gold, text, stored verdict
ROWS = [
    ("a", 1, "7", r"\boxed{7}", "correct"),
    ("a", 1, "7", r"\boxed{8}", "incorrect"),
    ("b", 4, r"\frac{1}{2}", r"\boxed{0.5}", "timeout"),
    ("b", 4, r"\frac{1}{2}", "the answer is $\\frac{1}{2}$", "no_answer"),
    ("c", None, r"\text{4:30 p.m.}", r"\boxed{4:30 \text{ p.m.}}", "correct"),
    ("c", None, r"\text{4:30 p.m.}", r"\boxed{x}", "incorrect"),
]


def stored(rows: list = ROWS, name: str = "math500") -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["id", "level", "answer", "text", "verdict"]).astype({"level": "Int64"})
    frame = frame.assign(set=name, subject="Algebra", sample=[0, 1] * (len(rows) // 2), length=9, confidence=0.5)
    return frame.assign(finish_reason=["stop"] * (len(rows) - 1) + ["length"])


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run with evaluations at steps 0 and 20."""
    folder = tmp_path / "run" / "evaluations"
    folder.mkdir(parents=True)
    for step, answers in ((0, stored(ROWS[:2])), (20, stored())):
        answers.to_parquet(folder / f"step_{step:06d}_completions.parquet")
        count_per_problem(answers).to_parquet(folder / f"step_{step:06d}.parquet")
    return tmp_path / "run"


def command(folder: Path, *overrides: object):
    return run("scripts/regrade.py", f"run={folder}", *overrides, folder=folder.parent / "logs")


def files_of(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_last_evaluation_is_graded_again_beside_the_stored_one(run_folder):
    before = files_of(run_folder)
    result = command(run_folder)
    assert (result.code, result.stderr) == (0, "")
    assert "verdicts that changed: 2 of 6" in result.stdout and "pass@2" in result.stdout
    (made,) = (run_folder / "regraded").iterdir()
    assert files_of(run_folder).items() > before.items()
    assert sorted(file.name for file in made.iterdir()) == [
        "completions.parquet",
        "evaluation.parquet",
        "summary.json",
    ]
    answers = pd.read_parquet(made / "completions.parquet")
    assert answers["verdict_before"].tolist() == [row[-1] for row in ROWS]
    assert answers["verdict"].tolist() == ["correct", "incorrect", "correct", "no_answer", "incorrect", "incorrect"]
    per_problem = pd.read_parquet(made / "evaluation.parquet")
    assert per_problem[["id", "n", "correct", "truncated", "no_answer", "timeout"]].values.tolist() == [
        ["a", 2, 1, 0, 0, 0],
        ["b", 2, 1, 0, 1, 0],
        ["c", 2, 0, 1, 0, 0],
    ]
    assert per_problem["level"].fillna(-1).tolist() == [1, 4, -1]
    summary = json.loads((made / "summary.json").read_text())
    assert summary["regraded"] == str(run_folder / "evaluations" / "step_000020_completions.parquet")
    assert summary["changed"] == [
        {"set": "math500", "before": "timeout", "now": "correct", "answers": 1},
        {"set": "math500", "before": "correct", "now": "incorrect", "answers": 1},
    ]
    assert summary["settings"]["boxed_only"] is True and summary["grader"]["timeout_s"] == 5.0
    assert summary["metrics"]["eval/math500/pass@1"] == pytest.approx(1 / 3)

    again = command(made)  # what was left is an evaluation's folder like any other
    assert again.code == 0 and "verdicts that changed: 0 of 6" in again.stdout
    assert "Changed verdicts" not in again.stdout


def test_step_settings_and_grader_are_the_command_lines(run_folder, tmp_path):
    target = tmp_path / "lenient"
    overrides = ["settings.boxed_only=false", "grader.num_workers=1", "grader.timeout_s=3"]
    result = command(run_folder, f"target={target}", *overrides)
    assert result.code == 0
    assert pd.read_parquet(target / "completions.parquet")["verdict"].tolist()[3] == "correct"
    assert json.loads((target / "summary.json").read_text())["grader"] == {
        "num_workers": 1,
        "timeout_s": 3,
        "memory_gb": 2.0,
    }
    result = command(run_folder, "step=0", f"target={tmp_path / 'first'}")
    assert result.code == 0 and "verdicts that changed: 0 of 2" in result.stdout


def test_the_settings_of_the_config_are_those_of_rewards():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        settings = compose("regrade", overrides=["run=x"]).settings
    assert make_settings(settings) == REWARD_SETTINGS


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [("strict", "maybe", "true or false"), ("float_rounding", 2.5, "an integer"), ("float_rounding", True, "integer")],
)
def test_settings_of_another_kind_are_refused(key, value, valid):
    with pytest.raises(ConfigError, match=rf"settings\.{key}={value!r}: .*{valid}"):
        make_settings({**vars(REWARD_SETTINGS), key: value})


def test_answers_of_several_sets_are_counted_apart(tmp_path):
    (tmp_path / "evaluation").mkdir()
    both = pd.concat([stored(), stored(name="math")])
    both.to_parquet(tmp_path / "evaluation" / "completions.parquet")
    with Grader(num_workers=1) as grader:
        options = {"run": tmp_path / "evaluation", "step": None, "target": tmp_path / "new"}
        changes = regrade(grader, REWARD_SETTINGS, **options)
    assert changes["set"].tolist() == ["math500", "math500", "math", "math"]
    assert pd.read_parquet(tmp_path / "new" / "evaluation.parquet")["set"].tolist() == ["math500"] * 3 + ["math"] * 3


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["step=3"], "error: step=3: must be one that is stored: 0, 20"),
        (
            ["run=nowhere"],
            "error: run='nowhere': must be a run folder, or a folder that evaluate.py wrote (there is none)",
        ),
        (["run=lens"], "error: run='lens': must be a folder with the answers of evaluations (it has none)"),
        (["target=lens"], "error: target='lens': must be a folder that does not exist yet"),
        (
            ["target=README.md/new"],
            "error: target='README.md/new': must be a folder that can be written to (Not a directory)",
        ),
        (["target=null"], "error: target=None: must be a file or folder"),
        (["settings.strict=5"], "error: settings.strict=5: must be true or false"),
        (["grader.num_workers=0"], "error: grader.num_workers=0: must be at least 1"),
    ],
)
def test_what_cannot_be_graded_again_is_one_line_and_exit_code_2(run_folder, overrides, line):
    before = files_of(run_folder)
    result = command(run_folder, *overrides)
    assert (result.code, result.one_line()) == (2, line)
    assert files_of(run_folder) == before


def test_a_file_that_lacks_a_column_is_named(run_folder):
    stored().drop(columns="subject").to_parquet(run_folder / "evaluations" / "step_000030_completions.parquet")
    result = command(run_folder)
    assert result.code == 2
    assert "step_000030_completions.parquet': must be a file with the column subject" in result.one_line()
