"""The audit of grades: gold answers that fail, a second opinion, and the most confident answers graded wrong."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from lens.commands.audit_grades import find_wrong, merge_equal_answers
from lens.grading.golds import NAMED, check_golds, count_failing
from lens.grading.pool import Grader
from lens.grading.second_opinion import agrees, read_numbers
from lens.problems.problem import FEATURES
from tests.support.command_line import run


@pytest.fixture(scope="module")
def grader():
    with Grader(num_workers=1) as grader:
        yield grader


def problems_of(answers: list[str]) -> Dataset:
    rows = {"problem": answers, "answer": answers, "level": [None] * len(answers), "subject": [None] * len(answers)}
    rows |= {"id": [f"p{n}" for n in range(len(answers))], "source": ["x"] * len(answers)}
    return Dataset.from_dict(rows, features=FEATURES)


# --- gold answers ----------------------------------------------------------------------------------------------------


def test_gold_answers_that_fail_are_named_and_counted(grader, caplog):
    sets = {"dataset": problems_of(["1", "", r"\frac{1}{2}"]), "math500": problems_of(["7"])}
    failing = check_golds(grader, sets)
    assert failing == {"dataset": [{"id": "p1", "answer": "", "verdict": "no_answer"}], "math500": []}
    assert count_failing(failing) == {"dataset": 1, "math500": 0}
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == "dataset: no answer to p1 can be right: its gold answer '', against itself, is no_answer"


def test_many_failing_gold_answers_do_not_fill_the_log(grader, caplog):
    failing = check_golds(grader, {"dataset": problems_of([" " * n for n in range(NAMED + 5)])})
    assert [gold["id"] for gold in failing["dataset"]] == [f"p{n}" for n in range(NAMED + 5)]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == NAMED + 1
    assert warnings[-1] == "dataset: and 5 more gold answers that fail; all are in failing_golds.json"


# --- the second opinion ----------------------------------------------------------------------------------------------

ALIKE = [
    ("7", " 7. "),
    (r"\text{4:30 p.m.}", r"4:30 \text{ p.m.}"),
    (r"\frac{1}{2}", r"\dfrac12"),
    (r"\frac{1}{2}", r"\tfrac{1} 2"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    (r"-\frac{3}{4}", r"\frac{-3}{4}"),
    (r"3\frac{1}{2}", "3.5"),
    (r"25\%", "25"),
    (r"25\%", "0.25"),
    (r"25\%", r"\frac{1}{4}"),
    (r"\$40", "40.00"),
    (r"10{,}000", "10000"),
    (r"50,\!625", "50,625"),
    (r"5\text{ cm}", "5"),
    (r"12\mathrm{\ m}^2", "12"),
    (r"90^\circ", "90"),
    (r"x = 5", "5"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\;\frac{\pi}{2})"),
    (r"\text{Even}", "even"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
]
DIFFERENT = [
    ("7", "8"),
    ("12", "1,2"),
    (r"(1,000)", "1000"),
    (r"\frac{1}{2}", r"\frac{2}{1}"),
    (r"25\%", "2500"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
    (r"\leftarrow", "arrow"),
    ("x^2", "x2"),
    ("2-1", "1"),
    ("7", "9^{9^{9}}"),
    ("1", "1e999999999"),
    ("0", "0/0"),
]


@pytest.mark.parametrize(("gold", "answer"), ALIKE)
def test_two_spellings_of_one_answer(gold, answer):
    assert agrees(gold, answer) and agrees(answer, gold)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_two_answers(gold, answer):
    assert not agrees(gold, answer) and not agrees(answer, gold)


@given(st.text(st.sampled_from(list(r"\{}$%,./-^ 0123456789xfractext")), max_size=40))
def test_the_second_opinion_has_one_on_any_text(text):
    assert agrees(text, text)
    assert all(abs(number) < 10**61 for number in read_numbers(text))


# --- the list --------------------------------------------------------------------------------------------------------


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
    assert wrong["answer"].tolist() == [r"4:30 \text{ p.m.}"] * 2 + ["[/red] 5:30", "7", ""]
    listed = merge_equal_answers(wrong.assign(step=0))
    shown = listed[["problem", "answer", "times", "confidence", "second opinion"]].values.tolist()
    assert shown == [
        ["a", "[/red] 5:30", 1, 0.99, "incorrect"],
        ["a", r"4:30 \text{ p.m.}", 2, 0.95, "correct"],
        ["b", "", 1, 0.8, "incorrect"],
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
    assert "7 answers of evaluations: 5 graded wrong, 4 of them with an answer in a box." in result.stdout
    assert "Second opinion on those: 3 are correct, 75.0 %." in result.stdout
    assert "[/red] 5:30" in result.stdout and "all 3 different ones" in result.stdout
    assert len(pd.read_csv(tmp_path / "new" / "all.csv")) == 3
    assert not (run_folder / "graded_wrong.csv").exists()


def test_a_folder_of_one_evaluation_is_audited_too(tmp_path):
    (tmp_path / "evaluation").mkdir()
    answers_of(ROWS).to_parquet(tmp_path / "evaluation" / "completions.parquet")
    result = audit_grades(tmp_path / "evaluation")
    assert result.code == 0 and "7 answers of evaluations" in result.stdout


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["limit=0"], "error: limit=0: an integer >= 1"),
        (["source=both"], "error: source='both': one of auto, rollouts, evaluations"),
        (["target=lens"], "error: target='lens': a file, not a folder"),
        (["run=3"], "error: run=3: a file or folder"),
        (["step=3"], "error: step=3: one that is stored: 1"),
        (["source=evaluations", "step=3"], "error: step=3: one that is stored: 20"),
        (["run=nowhere"], "error: run='nowhere': a run folder, or a folder that evaluate.py has left (there is none)"),
        (["run=lens"], "error: run='lens': a folder with the answers of evaluations (it has none)"),
    ],
)
def test_what_cannot_be_audited_is_one_line_and_exit_code_2(run_folder, overrides, line):
    result = audit_grades(run_folder, *overrides)
    assert (result.code, result.one_line()) == (2, line)


def test_files_that_cannot_be_read_are_named(run_folder):
    file = run_folder / "rollouts" / "step_000001.parquet"
    pd.DataFrame({"text": ["a"]}).to_parquet(file)
    result = audit_grades(run_folder)
    assert (result.code, "a file with the column sample, level, answer" in result.one_line()) == (2, True)
    file.write_text("no parquet")
    result = audit_grades(run_folder)
    assert (result.code, f"run='{file}': a parquet file that can be read" in result.one_line()) == (2, True)


# --- real rows -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("LENS_SHARED" not in os.environ, reason="LENS_SHARED is not set: no real rows to test with")
def test_on_real_answers_the_two_opinions_differ_in_the_spelling_of_one_time_of_day(grader):
    file = Path(os.environ["LENS_SHARED"]) / "data" / "model_completions.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    grades = grader.grade([row["completion"] for row in rows], [row["gold"] for row in rows])
    second = [agrees(row["gold"], grade.extracted or "") for row, grade in zip(rows, grades, strict=True)]
    differing = [n for n, grade in enumerate(grades) if grade.correct != second[n]]
    assert {(rows[n]["gold"], grades[n].extracted) for n in differing} == {(r"\text{4:30 p.m.}", r"4:30 \text{ p.m.}")}
    assert (len(rows), sum(not grade.correct for grade in grades), len(differing)) == (400, 56, 8)
