"""Stored answers graded again, without generating anything: what would another grader have said?"""

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
from lens.terminal import show_table

COLUMNS = ["set", "id", "level", "subject", "sample", "text", "answer", "verdict", "length", "finish_reason"]


def regrade(grader: Grader, settings: Settings, *, run: Path, step: int | None, target: Path) -> pd.DataFrame:
    """Grade the answers of a stored evaluation again, and show what that changes.

    Leaves a folder in the form that evaluate.py leaves: evaluation.parquet, completions.parquet (in which
    ``verdict_before`` is the stored verdict) and summary.json.

    Args:
        grader: what grades them now.
        settings: how it compares.
        run: a run folder, or the folder of one evaluation.
        step: the evaluation of a run; None takes the last.
        target: the folder to make.

    Returns:
        The changed verdicts: a row per set, verdict before and verdict now, with the number of answers.

    Raises:
        ConfigError: no such evaluation, or a target that exists or cannot be made.
    """
    file = list(find_answers(run, "evaluations", step).values())[-1]
    stored = read_answers(file, [*COLUMNS, "confidence"])
    if target.exists():
        raise ConfigError("target", str(target), "a folder that does not exist yet")
    check_writable("target", target)
    grades = grader.grade(stored["text"].tolist(), stored["answer"].tolist(), settings)
    answers = stored.assign(verdict=[grade.verdict for grade in grades], verdict_before=stored["verdict"])
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
    write_json(target / "summary.json", summary)
    show_table(f"{file}, graded again: pass@k in %, 95 % bootstrap interval over problems", make_table(per_problem))
    print(f"verdicts that changed: {changes['answers'].sum():,} of {len(answers):,}")
    if len(changes):
        show_table("Changed verdicts", changes)
    print(f"rows and answers: {target}")
    return changes


def count_changes(answers: pd.DataFrame) -> pd.DataFrame:
    """How many answers of each set went from which verdict to which, where the two differ."""
    changed = answers[answers["verdict"] != answers["verdict_before"]]
    counts = changed.groupby(["set", "verdict_before", "verdict"], sort=False).size()
    return counts.rename("answers").reset_index().rename(columns={"verdict_before": "before", "verdict": "now"})


def make_settings(values: Mapping[str, Any]) -> Settings:
    """The grader's settings from a config.

    Raises:
        ConfigError: a value of another type than the default's.
    """
    for field in fields(Settings):
        if type(values[field.name]) is not type(field.default):
            valid = "true or false" if isinstance(field.default, bool) else "an integer"
            raise ConfigError(f"settings.{field.name}", values[field.name], valid)
    return Settings(**values)
