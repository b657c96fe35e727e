"""Grades stored answers again, without generating any, to show what another grader would have said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from lens.config.checks import check_writable
from lens.errors import ConfigError
from lens.evaluation.scores import compute_metrics, count_per_problem, make_table
from lens.files import write_json, write_parquet
from lens.grading.judge import Settings
from lens.grading.pool import Grader
from lens.runs.answers import find_answers, read_answers
from lens.runs.run import SUMMARY
from lens.terminal import show_table

COLUMNS = ["set", "id", "level", "subject", "sample", "text", "answer", "verdict", "length", "finish_reason"]


def regrade(grader: Grader, settings: Settings, *, run: Path, step: int | None, target: Path) -> pd.DataFrame:
    """Grade the answers of a stored evaluation again, and show which verdicts change.

    Writes the same files as scripts/evaluate.py: evaluation.parquet, completions.parquet (with the stored verdict as
    ``verdict_before``) and summary.json.

    Args:
        grader: grades the answers now.
        settings: how the grader compares answers.
        run: a run folder, or the folder of one evaluation.
        step: the step of the evaluation; None takes the last.
        target: the folder to make.

    Returns:
        The changed verdicts: a row per set, verdict before and verdict now, with the number of answers.

    Raises:
        ConfigError: there is no such evaluation, or the target exists or cannot be made.
    """
    file = list(find_answers(run, "evaluations", step).values())[-1]
    stored = read_answers(file, [*COLUMNS, "confidence"])
    if target.exists():
        raise ConfigError("target", str(target), "must be a folder that does not exist yet")
    check_writable("target", target)
    grades = grader.grade(stored["text"].tolist(), stored["answer"].tolist(), settings)
    now = {name: [getattr(grade, name) for grade in grades] for name in ("verdict", "score")}
    answers = stored.assign(**now, verdict_before=stored["verdict"]).astype({"score": "Float64"})
    per_problem, changes = count_per_problem(answers), count_changes(answers)

    write_parquet(target / "evaluation.parquet", per_problem)
    write_parquet(target / "completions.parquet", answers)
    summary = {
        "regraded": str(file),
        "grader": {name: getattr(grader, name) for name in ("num_workers", "timeout_s", "memory_gb")},
        "settings": asdict(settings),
        "answers": len(answers),
        "changed": changes.to_dict("records"),
        "metrics": compute_metrics(per_problem),
    }
    write_json(target / SUMMARY, summary)
    show_table(f"{file}, graded again: pass@k in %, 95 % bootstrap interval over problems", make_table(per_problem))
    print(f"verdicts that changed: {changes['answers'].sum():,} of {len(answers):,}")
    if len(changes):
        show_table("Changed verdicts", changes)
    print(f"rows and answers: {target}")
    return changes


def count_changes(answers: pd.DataFrame) -> pd.DataFrame:
    """Count the answers whose verdict changed: a row per set, verdict before and verdict now."""
    changed = answers[answers["verdict"] != answers["verdict_before"]]
    counts = changed.groupby(["set", "verdict_before", "verdict"], sort=False).size()
    return counts.rename("answers").reset_index().rename(columns={"verdict_before": "before", "verdict": "now"})


def make_settings(values: Mapping[str, Any]) -> Settings:
    """Make the grader's settings from a config.

    Raises:
        ConfigError: a value does not have the type of its default.
    """
    for field in fields(Settings):
        if type(values[field.name]) is not type(field.default):
            valid = "must be true or false" if isinstance(field.default, bool) else "must be an integer"
            raise ConfigError(f"settings.{field.name}", values[field.name], valid)
    return Settings(**values)
