"""Writes what a run measures: metrics.jsonl, parquet files, and a W&B run fed from the same values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import wandb

from lens.files import replacing, write_json, write_parquet
from lens.runs.wandb_history import count_lines_in_wandb, remember_run_id

STEP_AXIS = "train/global_step"
COMPLETIONS_IN_WANDB = 64


class Tracker:
    """Writes metrics.jsonl at once; W&B follows it when `commit` says that what was logged will not be taken back.

    Line i of metrics.jsonl is W&B's history step i, so that a run that was killed and goes on feeds W&B what it lacks,
    and nothing twice.

    Args:
        folder: the run folder.
        config: the composed config, for W&B.
        wandb_settings: arguments of wandb.init (project, group, name, tags, mode).
        run_id: the W&B id to go on with; None takes that of an earlier start in this folder, or a new one.
        lines: how many lines of metrics.jsonl belong to the state that the run goes on from; later ones are dropped.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        wandb_settings: dict[str, Any],
        *,
        run_id: str | None,
        lines: int,
    ):
        self.folder = folder
        self.metrics_file = folder / "metrics.jsonl"
        self.lines = cut_metrics(self.metrics_file, lines)
        if run_id is None and wandb_settings["mode"] != "disabled":
            run_id = remember_run_id(folder)
        written = count_lines_in_wandb(folder, run_id)
        self._wandb = wandb.init(
            dir=folder,
            config=config,
            id=run_id,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
            **wandb_settings,
        )
        # Online, the server knows what has arrived; offline it is what the files hold.
        self._fed = self._wandb.starting_step if wandb_settings["mode"] == "online" else written
        self._wandb.define_metric(STEP_AXIS)
        self._wandb.define_metric("*", step_metric=STEP_AXIS)

    @property
    def run_id(self) -> str:
        """The id of the W&B run, kept over a resume."""
        return self._wandb.id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add a line to metrics.jsonl; values that are nan (the mean of nothing) are left out."""
        line = {STEP_AXIS: step, **{name: value for name, value in metrics.items() if not math.isnan(value)}}
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines += 1

    def write_evaluation(self, step: int, per_problem: pd.DataFrame, answers: pd.DataFrame) -> None:
        """evaluations/step_*.parquet and step_*_completions.parquet."""
        write_parquet(self.folder / "evaluations" / f"step_{step:06d}.parquet", per_problem)
        write_parquet(self._answers_file(step), answers)

    def _answers_file(self, step: int) -> Path:
        return self.folder / "evaluations" / f"step_{step:06d}_completions.parquet"

    def write_rollouts(self, step: int, frames: Sequence[pd.DataFrame], golds: dict[str, str]) -> Path:
        """rollouts/step_*.parquet with gold answers by problem id, named by the first update that learns from them."""
        rows = pd.concat(frames)
        write_parquet(self._rollouts_file(step), rows.assign(answer=rows["problem_id"].map(golds)))
        return self._rollouts_file(step)

    def find_rollouts(self, steps: range) -> Path | None:
        """The stored rollouts of the first of these steps that has some."""
        return next((file for step in steps if (file := self._rollouts_file(step)).exists()), None)

    def _rollouts_file(self, step: int) -> Path:
        return self.folder / "rollouts" / f"step_{step:06d}.parquet"

    def commit(self) -> None:
        """Feed W&B with everything logged so far, and a sample of an evaluation's answers beside its numbers."""
        lines = self.metrics_file.read_text().splitlines() if self.metrics_file.exists() else []
        for number, line in enumerate(map(json.loads, lines[self._fed :]), start=self._fed):
            file = self._answers_file(line[STEP_AXIS])
            if any(name.startswith("eval/") for name in line) and file.exists():
                line["eval/completions"] = wandb.Table(dataframe=choose_of_each_level(pd.read_parquet(file)))
            self._wandb.log(line, step=number, commit=True)
        self._fed = max(self._fed, len(lines))

    def finish(self, summary: dict[str, Any] | None) -> None:
        """End the W&B run; with a summary, write summary.json too, which marks the run as finished."""
        if summary is not None:
            self.commit()
            self._wandb.summary.update(summary["metrics"])
            write_json(self.folder / "summary.json", summary)
        self._wandb.finish(exit_code=0 if summary is not None else 1)


class SilentTracker:
    """A `Tracker` for the processes beside the first, which writes for all."""

    run_id, lines = None, 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing, as all below."""

    def write_evaluation(self, step: int, per_problem: pd.DataFrame, answers: pd.DataFrame) -> None: ...

    def write_rollouts(self, step: int, frames: Sequence[pd.DataFrame], golds: dict[str, str]) -> None: ...

    def find_rollouts(self, steps: range) -> None: ...

    def commit(self) -> None: ...

    def finish(self, summary: dict[str, Any] | None) -> None: ...


def choose_of_each_level(answers: pd.DataFrame) -> pd.DataFrame:
    """The first answers of each level, COMPLETIONS_IN_WANDB at most."""
    shown = answers.groupby("level", dropna=False).head(COMPLETIONS_IN_WANDB // 5)
    return shown.astype({"level": "float"}).head(COMPLETIONS_IN_WANDB)


def cut_metrics(file: Path, lines: int) -> int:
    """Cut metrics.jsonl back to its first lines; returns how many there are now."""
    if not file.exists():
        return 0
    kept = file.read_text().splitlines(keepends=True)[:lines]
    with replacing(file) as unfinished:
        unfinished.write_text("".join(kept))
    return len(kept)
