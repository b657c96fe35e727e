"""Names the files of a run folder, and reads a finished run from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from lens.errors import ConfigError
from lens.evaluation.scores import pass_at_ks

SUMMARY, PROVENANCE = "summary.json", "provenance.json"
FAILURE = "failure.txt"  # says why a run could not continue


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder.

    Attributes:
        folder: the run folder.
        choices: the option chosen in each config group.
        overrides: the overrides as they were typed.
        seed: the run's seed.
        config: the composed config with its interpolations.
        evaluation: the config's evaluation section, resolved.
    """

    folder: Path
    choices: dict[str, str | None]
    overrides: Sequence[str]
    seed: int
    config: dict[str, Any]
    evaluation: dict[str, Any]

    @property
    def objective(self) -> str:
        """Return the chosen objective."""
        return self.choices["objective"]

    @property
    def experiment(self) -> str:
        """Return the chosen experiment, or "no experiment"."""
        return self.choices.get("experiment") or "no experiment"

    @cached_property
    def setting(self) -> str:
        """Return model, dataset and evaluation as one string: runs with the same setting can be compared."""
        parts = [self.config.get("model"), self.config.get("dataset"), drop_rhythm(self.evaluation)]
        return json.dumps(parts, sort_keys=True)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Read metrics.jsonl: a row per line, indexed by step. A step with an evaluation has two rows."""
        return pd.read_json(self.folder / "metrics.jsonl", lines=True).set_index("train/global_step").sort_index()

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """Return the rows of metrics that hold an evaluation, with the eval/ columns only."""
        columns = [name for name in self.metrics.columns if name.startswith("eval/")]
        return self.metrics[columns].dropna(how="all")

    @cached_property
    def problems(self) -> pd.DataFrame:
        """Return the last evaluation: a row per problem, ordered by set and id."""
        return self.evaluated_at(self.evaluations.index[-1])

    @cached_property
    def pass_at_ks(self) -> pd.DataFrame:
        """Return pass@k in percent for each row of `problems`, a column per k."""
        return 100 * pass_at_ks(self.problems)

    @cached_property
    def gains(self) -> pd.DataFrame:
        """Return by how many points pass@k of each of `problems` is above the run's first evaluation."""
        return self.pass_at_ks - 100 * pass_at_ks(self.evaluated_at(self.evaluations.index[0]))

    @cached_property
    def solved(self) -> np.ndarray:
        """Return which of `problems` at least one answer of the last evaluation solves, bool."""
        return self.problems["correct"].to_numpy() > 0

    def evaluated_at(self, step: int) -> pd.DataFrame:
        """Read the evaluation at a step: a row per problem, ordered by set and id."""
        rows = pd.read_parquet(self.folder / "evaluations" / f"step_{step:06d}.parquet")
        return rows.sort_values(["set", "id"], ignore_index=True)

    def answers(self) -> pd.DataFrame:
        """Read the verdict and the confidence of each answer of the last evaluation; empty if they were not stored."""
        file = self.folder / "evaluations" / f"step_{self.evaluations.index[-1]:06d}_completions.parquet"
        return pd.read_parquet(file, columns=["verdict", "confidence"]) if file.exists() else pd.DataFrame()


def explain_unfinished(folder: Path) -> str | None:
    """Return why a report has to leave out a run folder; None if it is finished and complete."""
    if not (folder / SUMMARY).exists():
        failure = folder / FAILURE
        return f"not finished ({failure.read_text().strip()})" if failure.exists() else "not finished"
    for name in ("metrics.jsonl", ".hydra/config.yaml", ".hydra/hydra.yaml"):
        if not (folder / name).exists():
            return f"incomplete (no {name})"
    if "lens_version" not in json.loads((folder / SUMMARY).read_text()):
        return "lens 0.1 wrote it, and can report it"
    return None


def read_config(folder: Path, key: str) -> DictConfig:
    """Read the composed config of a run folder; ``key`` is the config key that names the folder, for the message.

    Raises:
        ConfigError: version 0.1 wrote the folder; its keys have other names.
    """
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    if "loss" not in config:
        raise ConfigError(key, str(folder), "must be a run folder of lens 0.2; lens 0.1 wrote it, and can read it")
    return config


def load_run(folder: Path) -> Run:
    """Load a finished run, and read everything that reports need, so that a damaged file fails here.

    Raises:
        OSError, ValueError, KeyError, IndexError, yaml.YAMLError, OmegaConfBaseException: a file is damaged.
    """
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    hydra = OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra
    plain = OmegaConf.to_container(config, resolve=False)
    evaluation = OmegaConf.to_container(config.evaluation, resolve=True)
    choices = OmegaConf.to_container(hydra.runtime.choices)
    run = Run(folder, choices, list(hydra.overrides.task), plain["seed"], plain, evaluation)
    run.evaluated_at(run.evaluations.index[0])
    run.problems, run.answers()
    return run


def drop_rhythm(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluation's config without ``every``, which says how often to evaluate."""
    return {key: value for key, value in evaluation.items() if key != "every"}
