"""The audit of grades: the most confident answers graded wrong, from the command line too."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lens.commands.audit_grades import find_wrong, merge_equal_answers
from tests.support.command_line import run


def answers_of(rows: list[tuple[str, str, str, str, float]]) -> pd.DataFrame:
    """(problem, gold, text, verdict, confidence) as the answers of an evaluation."""
    frame = pd.DataFrame(rows, columns=["id", "answer", "text", "verdict", "confidence"])
    common = {"set": "math500", "subject": "Algebra", "length": 5, "finish_reason": "stop"}
    return frame.assign(level=3, sample=range(len(rows)), **common).astype({"level": "Int64"})


ROWS = [
    ("a", r"\text{4:30 p.m.}", r"so \boxed{4:30 \text{ p.m.}}", "incorrect", 0.9),
    ("a", r"\text{4:30 p.m.}", r"thus \boxed{4:30 \text{ p.m.}}", "incorrect", 0.95),
    ("a", r"\text{4:30 p.m.}", r"\boxed{[/red] 5:30}", "incorrect", 0.99),
    ("b", "7", r"\boxed{7}", "correct", 0.999),
    ("b", "7", r"\boxed 7", "no_answer", 0.5),
    ("b", "7", "it is 7", "no_answer", 0.8),
    ("b", "7", r"\boxed{9^{9^{9}}}", "timeout", 0.8),
]


def test_answers_graded_wrong_are_listed_once_the_most_confident_first():
    wrong = find_wrong(answers_of(ROWS).rename(columns={"id": "problem"}))
    assert wrong["answer"].tolist() == [r"4:30 \text{ p.m.}"] * 2 + ["[/red] 5:30", "7", "", "9^{9^{9}}"]
    listed = merge_equal_answers(wrong.assign(step=0))
    shown = listed[["problem", "answer", "times", "confidence", "second opinion"]].values.tolist()
    assert shown == [
        ["a", "[/red] 5:30", 1, 0.99, "incorrect"],
        ["a", r"4:30 \text{ p.m.}", 2, 0.95, "correct"],
        ["b", "", 1, 0.8, "incorrect"],
        ["b", "9^{9^{9}}", 1, 0.8, "incorrect"],
        ["b", "7", 1, 0.5, "correct"],
    ]


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run with one evaluation and one round of rollouts, in which the first answer alone is graded wrong."""
    answers = answers_of(ROWS)
    (tmp_path / "run" / "evaluations").mkdir(parents=True)
    (tmp_path / "run" / "rollouts").mkdir()
    answers.to_parquet(tmp_path / "run" / "evaluations" / "step_000020_completions.parquet")
    answers.drop(columns="id").to_parquet(tmp_path / "run" / "evaluations" / "step_000020.parquet")
    taught = answers.rename(columns={"id": "problem_id"})
    taught.loc[1:, "verdict"] = "correct"
    taught.to_parquet(tmp_path / "run" / "rollouts" / "step_000001.parquet")
    return tmp_path / "run"


def audit_grades(folder: Path, *overrides: str):
    return run("scripts/audit_grades.py", f"run={folder}", *overrides, folder=folder.parent / "logs")


def test_the_command_lists_what_was_trained_on_and_writes_all_of_it(run_folder):
    result = audit_grades(run_folder)
    assert (result.code, result.stderr) == (0, "")
    assert "7 answers of rollouts: 1 graded wrong, 1 of them with an answer in a box." in result.stdout
    assert "Second opinion on those: 1 are correct, 100.0 %." in result.stdout
    assert result.stdout.count(r"4:30 \text{ p.m.}") == 2  # once in each table
    (row,) = pd.read_csv(run_folder / "graded_wrong.csv").to_dict("records")
    assert (row["problem"], row["step"], row["second opinion"]) == ("a", 1, "correct")


def test_the_command_lists_what_was_evaluated(run_folder, tmp_path):
    result = audit_grades(run_folder, "source=evaluations", "limit=1", f"target={tmp_path / 'new' / 'all.csv'}")
    assert (result.code, result.stderr) == (0, "")
    assert "7 answers of evaluations: 6 graded wrong, 5 of them with an answer in a box." in result.stdout
    assert "Second opinion on those: 3 are correct, 60.0 %." in result.stdout
    assert "[/red] 5:30" in result.stdout and "all 4 different ones" in result.stdout
    assert len(pd.read_csv(tmp_path / "new" / "all.csv")) == 4
    assert not (run_folder / "graded_wrong.csv").exists()


def test_a_folder_of_one_evaluation_is_audited_too(tmp_path):
    (tmp_path / "evaluation").mkdir()
    answers_of(ROWS).to_parquet(tmp_path / "evaluation" / "completions.parquet")
    result = audit_grades(tmp_path / "evaluation")
    assert result.code == 0 and "7 answers of evaluations" in result.stdout


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["limit=0"], "error: limit=0: must be an integer >= 1"),
        (["source=both"], "error: source='both': must be one of auto, rollouts, evaluations"),
        (["target=lens"], "error: target='lens': must be a file, not a folder"),
        (["run=3"], "error: run=3: must be a file or folder"),
        (["step=3"], "error: step=3: must be one that is stored: 1"),
        (["source=evaluations", "step=3"], "error: step=3: must be one that is stored: 20"),
        (
            ["run=nowhere"],
            "error: run='nowhere': must be a run folder, or a folder that evaluate.py wrote (there is none)",
        ),
        (["run=lens"], "error: run='lens': must be a folder with the answers of evaluations (it has none)"),
    ],
)
def test_what_cannot_be_audited_is_one_line_and_exit_code_2(run_folder, overrides, line):
    result = audit_grades(run_folder, *overrides)
    assert (result.code, result.one_line()) == (2, line)


def test_files_that_cannot_be_read_are_named(run_folder):
    file = run_folder / "rollouts" / "step_000001.parquet"
    pd.DataFrame({"text": ["a"]}).to_parquet(file)
    result = audit_grades(run_folder)
    assert (result.code, "must be a file with the column sample, level, answer" in result.one_line()) == (2, True)
    file.write_text("no parquet")
    result = audit_grades(run_folder)
    assert (result.code, f"run='{file}': must be a parquet file that can be read" in result.one_line()) == (2, True)
