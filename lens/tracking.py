"""What a run leaves behind: metrics.jsonl, parquet files, provenance, and a W&B run fed from the same values."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import netrc
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pandas as pd
import torch
import wandb
from wandb.sdk import wandb_setup

from lens.errors import ConfigError

log = logging.getLogger(__name__)

STEP_AXIS = "train/global_step"
WANDB_MODES = ("auto", "online", "offline", "disabled")
PACKAGES = (
    "torch",
    "transformers",
    "hydra-core",
    "omegaconf",
    "wandb",
    "datasets",
    "math-verify",
    "numpy",
    "vllm",
    "trl",
)
COMPLETIONS_IN_WANDB = 64
FORMER_HOSTS = {"api.forge.coreweave.com": "api.wandb.ai"}  # W&B takes a key that was stored under the old name too


def resolve_wandb_mode(mode: str) -> str:
    """The mode to run W&B in; auto is online where a key is set and offline elsewhere.

    Raises:
        ConfigError: an unknown mode, or online without a key.
    """
    if mode not in WANDB_MODES:
        raise ConfigError("tracking.wandb.mode", mode, f"one of {', '.join(WANDB_MODES)}")
    has_key = has_wandb_key()
    if mode == "online" and not has_key:
        valid = "a key in WANDB_API_KEY or from `wandb login`; without one: offline (upload later with `wandb sync`)"
        raise ConfigError("tracking.wandb.mode", mode, valid)
    if mode == "auto":
        return "online" if has_key else "offline"
    return mode


def has_wandb_key() -> bool:
    """Whether W&B would find a key: in WANDB_API_KEY, or where `wandb login` leaves it for the server in its settings.

    W&B has no public lookup that does not ask at the terminal; its settings do know which server is meant.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser()).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    host = urlparse(wandb_setup.singleton().settings.base_url).netloc
    return host in hosts or FORMER_HOSTS.get(host) in hosts


class Tracker:
    """Writes metrics.jsonl at once and feeds W&B when `commit` says that what was logged will not be taken back.

    Args:
        folder: the run folder.
        config: the composed config, for W&B.
        wandb_settings: arguments of wandb.init (project, group, name, tags, mode).
        run_id: the W&B id to go on with, or None for a new one.
        resumed_from: the step that the run goes on from, or None for a start; metrics of later steps are dropped.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        wandb_settings: dict[str, Any],
        *,
        run_id: str | None,
        resumed_from: int | None,
    ):
        self.folder = folder
        self.metrics_file = folder / "metrics.jsonl"
        self._pending: list[dict[str, Any]] = []
        drop_metrics_after(self.metrics_file, -1 if resumed_from is None else resumed_from)
        self._wandb = wandb.init(
            dir=folder,
            config=config,
            id=run_id,
            resume=None if run_id is None else "allow",
            settings=wandb.Settings(silent=True, console="off"),
            **wandb_settings,
        )
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
        self._pending.append(line)

    def write_evaluation(self, step: int, per_problem: pd.DataFrame, answers: pd.DataFrame) -> None:
        """evaluations/step_*.parquet and step_*_completions.parquet, and a sample of the answers as a W&B table."""
        write_parquet(self.folder / "evaluations" / f"step_{step:06d}.parquet", per_problem)
        write_parquet(self.folder / "evaluations" / f"step_{step:06d}_completions.parquet", answers)
        shown = answers.groupby("level", dropna=False).head(COMPLETIONS_IN_WANDB // 5)
        shown = shown.astype({"level": "float"}).head(COMPLETIONS_IN_WANDB)
        self._pending.append({STEP_AXIS: step, "eval/completions": wandb.Table(dataframe=shown)})

    def write_rollouts(self, step: int, rollouts: pd.DataFrame) -> None:
        """rollouts/step_*.parquet, named by the first update that learns from them."""
        write_parquet(self.folder / "rollouts" / f"step_{step:06d}.parquet", rollouts)

    def commit(self) -> None:
        """Feed W&B with everything logged so far: a checkpoint holds it, or the run is over."""
        for line in self._pending:
            self._wandb.log(line)
        self._pending.clear()

    def finish(self, summary: dict[str, Any] | None) -> None:
        """End the W&B run; with a summary, write summary.json too, which marks the run as finished."""
        if summary is not None:
            self.commit()
            self._wandb.summary.update(summary["metrics"])
            write_json(self.folder / "summary.json", summary)
        self._wandb.finish(exit_code=0 if summary is not None else 1)


def drop_metrics_after(file: Path, step: int) -> None:
    """Cut metrics.jsonl back to a step, and a last line that a kill left half-written."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            reached = json.loads(line)[STEP_AXIS]
        except json.JSONDecodeError:
            break
        if reached > step:
            break
        kept.append(line + "\n")
    replacement = file.with_suffix(".unfinished")
    replacement.write_text("".join(kept))
    replacement.replace(file)


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a parquet file beside its place and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    frame.to_parquet(unfinished, index=False)
    unfinished.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file beside its place and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value, indent=2) + "\n")
    unfinished.replace(path)


def provenance() -> dict[str, Any]:
    """Where a result comes from: command, git state of the source, package versions, machine."""
    source = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        run = subprocess.run(["git", "-C", source, *arguments], capture_output=True, text=True, check=False)
        return run.stdout.strip() if run.returncode == 0 else None

    changes = git("status", "--porcelain")
    return {
        "command": sys.argv,
        "git": {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)},
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := installed_version(name))},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def installed_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
