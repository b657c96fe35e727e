"""Writes what a run measures: metrics.jsonl, parquet files, and a W&B run fed from the same values."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import wandb

from lens.distributed.processes import TERMINATED
from lens.files import replacing, write_json, write_parquet
from lens.runs.run import SUMMARY
from lens.runs.wandb_history import count_lines_in_wandb, remember_run_id

log = logging.getLogger(__name__)

STEP_AXIS = "train/global_step"
COMPLETIONS_IN_WANDB = 64


class Tracker:
    """Writes metrics to metrics.jsonl at once, and feeds them to W&B when `commit` is called.

    `commit` means that no resume will go back behind what was logged. Line i of metrics.jsonl is W&B's history step i.
    So a run that resumes after a kill feeds W&B what it lacks, and nothing twice.

    Args:
        folder: the run folder.
        config: the composed config, for W&B.
        wandb_settings: arguments of wandb.init (project, group, name, tags, mode).
        run_id: the W&B id to continue; None takes the id of an earlier start in this folder, or a new one.
        lines: how many lines of metrics.jsonl belong to the state that the run resumes from; later ones are dropped.
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
        # Online, the server knows which lines have arrived; offline, the files do.
        self._fed = self._wandb.starting_step if wandb_settings["mode"] == "online" else written
        self._wandb.define_metric(STEP_AXIS)
        self._wandb.define_metric("*", step_metric=STEP_AXIS)

    @property
    def run_id(self) -> str:
        """Return the id of the W&B run; it stays the same when the run resumes."""
        return self._wandb.id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, without values that are nan (means of nothing)."""
        line = {STEP_AXIS: step, **{name: value for name, value in metrics.items() if not math.isnan(value)}}
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines += 1

    def write_evaluation(self, step: int, per_problem: pd.DataFrame, answers: pd.DataFrame) -> None:
        """Write evaluations/step_*.parquet and step_*_completions.parquet."""
        write_parquet(self.folder / "evaluations" / f"step_{step:06d}.parquet", per_problem)
        write_parquet(self._answers_file(step), answers)

    def _answers_file(self, step: int) -> Path:
        return self.folder / "evaluations" / f"step_{step:06d}_completions.parquet"

    def write_rollouts(self, step: int, frames: Sequence[pd.DataFrame], golds: dict[str, str]) -> Path:
        """Write rollouts/step_*.parquet, with gold answers by problem id, and return its path.

        ``step`` is the first update that learns from the rollouts.
        """
        rows = pd.concat(frames)
        write_parquet(self._rollouts_file(step), rows.assign(answer=rows["problem_id"].map(golds)))
        return self._rollouts_file(step)

    def find_rollouts(self, steps: range) -> Path | None:
        """Return the rollouts file of the first of these steps that has one, or None."""
        return next((file for step in steps if (file := self._rollouts_file(step)).exists()), None)

    def _rollouts_file(self, step: int) -> Path:
        return self.folder / "rollouts" / f"step_{step:06d}.parquet"

    def commit(self) -> None:
        """Feed W&B everything logged so far; an evaluation's numbers come with a sample of its answers."""
        lines = self.metrics_file.read_text().splitlines() if self.metrics_file.exists() else []
        for number, line in enumerate(map(json.loads, lines[self._fed :]), start=self._fed):
            file = self._answers_file(line[STEP_AXIS])
            if any(name.startswith("eval/") for name in line) and file.exists():
                line["eval/completions"] = wandb.Table(dataframe=choose_of_each_level(pd.read_parquet(file)))
            with unless_terminated():
                self._wandb.log(line, step=number, commit=True)
        self._fed = max(self._fed, len(lines))

    def finish(self, summary: dict[str, Any] | None) -> None:
        """End the W&B run. With a summary, then write summary.json, which marks the run as finished.

        In this order, a kill at any point loses nothing: a run that is not marked resumes, and feeds W&B what it lacks.
        """
        if summary is not None:
            self.commit()
            self._wandb.summary.update(summary["metrics"])
        with unless_terminated():
            self._wandb.finish(exit_code=0 if summary is not None else 1)
        if summary is not None:
            write_json(self.folder / SUMMARY, summary)


@contextmanager
def unless_terminated() -> Iterator[None]:
    """Let W&B's own process be gone once SIGTERM has come here: SLURM sends it to all processes of a job.

    The run then ends without W&B, and feeds it what it lacks when it resumes.
    """
    try:
        yield
    except ConnectionError:
        if not TERMINATED.is_set():
            raise
        log.warning("W&B's process has been ended too; the run will feed it when it resumes")


class SilentTracker:
    """Writes nothing: the tracker of all processes but the first."""

    run_id, lines = None, 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Do nothing, like all methods below."""

    def write_evaluation(self, step: int, per_problem: pd.DataFrame, answers: pd.DataFrame) -> None: ...

    def write_rollouts(self, step: int, frames: Sequence[pd.DataFrame], golds: dict[str, str]) -> None: ...

    def find_rollouts(self, steps: range) -> None: ...

    def commit(self) -> None: ...

    def finish(self, summary: dict[str, Any] | None) -> None: ...


def choose_of_each_level(answers: pd.DataFrame) -> pd.DataFrame:
    """Return the first answers of each level, COMPLETIONS_IN_WANDB in all at most; a number that is missing is NaN."""
    shown = answers.groupby("level", dropna=False).head(COMPLETIONS_IN_WANDB // 5)
    return shown.astype(dict.fromkeys(shown.select_dtypes(["Int64", "Float64"]), "float")).head(COMPLETIONS_IN_WANDB)


def cut_metrics(file: Path, lines: int) -> int:
    """Cut metrics.jsonl back to its first ``lines`` lines; return how many lines it has then."""
    if not file.exists():
        return 0
    kept = file.read_text().splitlines(keepends=True)[:lines]
    with replacing(file) as unfinished:
        unfinished.write_text("".join(kept))
    return len(kept)
