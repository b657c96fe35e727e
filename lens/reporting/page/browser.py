"""Stored rollouts -> what the page's group browser shows: groups, and their answers under GRPO and LENS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from torch import Tensor

from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.reporting.arms import Arm
from lens.runs.answers import find_answers, read_answers
from lens.runs.run import Run
from lens.training.stored_experience import STORED, find_group_size, name_group_kinds, weigh_again

# An answer is a list in this order, which spares the page the names ten thousand times.
FIELDS = (
    "sample",
    "verdict",
    "valid",
    "confidence",
    "reward",
    "grpo",
    "lens",
    "trained",
    "length",
    "finish_reason",
    "text",
)
DIGITS = 6  # significant ones, of what was stored as float32


@dataclass(frozen=True)
class Chunk:
    """The groups of one run at one step, as plain lists and dicts; the page reads it when it is first looked at."""

    key: str
    step: int
    groups: list[dict[str, Any]]


@dataclass(frozen=True)
class BrowsedRun:
    """One run of the browser, and its stored rollouts or some of them."""

    label: str
    seed: int
    chunks: list[Chunk]


def choose_runs(arms: Sequence[Arm], limit: int) -> tuple[list[BrowsedRun], list[str]]:
    """One run of each arm, at most ``limit`` answers in all, and a line for each run with files that were left out.

    Arms of one setting show the same seed where they can, and so the same first questions. Where not all fits, steps
    are taken at equal distances, the first and the last among them, and of a step its first groups.
    """
    runs, notes = [], []
    for number, arm in enumerate(arms):
        beside = [other for other in arms if other.setting == arm.setting]
        shared = set.intersection(*(set(other.seeds) for other in beside))
        run = next((run for run in arm.runs if run.seed in shared), arm.runs[0])
        chunks, skipped = read_chunks(run, f"run{number}", limit // len(arms))
        notes += skipped
        if chunks:
            runs.append(BrowsedRun(arm.label, run.seed, chunks))
    return runs, notes


def read_chunks(run: Run, key: str, limit: int) -> tuple[list[Chunk], list[str]]:
    """Stored rollouts of a run, at most ``limit`` answers, and a line if there are files that cannot be read."""
    try:
        files = find_answers(run.folder, "rollouts")
    except ConfigError:  # trainer.rollouts.rollouts_every=0
        return [], []
    columns = [*STORED, "prompt_ids", "finish_reason", "text", "answer"]
    read, unread = {}, []
    for step, file in files.items():
        try:
            read[step] = read_answers(file, columns)
            find_group_size(read[step])
        except ConfigError as error:
            unread.append(error)
            read.pop(step, None)
    notes = [f"{unread[0]}; left out of the browser, with {len(unread)} of {len(files)} files"] if unread else []
    if not read:
        return [], notes
    steps, largest = list(read), max(map(len, read.values()))
    number = min(len(steps), max(1, limit // largest))
    chosen = sorted({steps[round(place)] for place in np.linspace(0, len(steps) - 1, number)})
    decode = make_decoder(run.folder)
    return [Chunk(f"{key}-step{step}", step, read_groups(read[step], decode, limit)) for step in chosen], notes


def read_groups(
    answers: pd.DataFrame, decode: Callable[[Sequence[int]], str | None], limit: int
) -> list[dict[str, Any]]:
    """The groups of one file with their answers, the most confident first; at most ``limit`` answers."""
    size = find_group_size(answers)
    answers = answers.head(max(size, limit // size * size))
    under = {name: weigh_again(answers, load_shipped_objective(name)) for name in ("grpo", "lens")}
    shown = answers.rename(columns={"advantage": "trained"}).assign(
        reward=under["lens"]["calibrated_reward"],
        grpo=under["grpo"]["advantage"],
        lens=under["lens"]["advantage"],
    )
    groups = []
    for start, kind in zip(range(0, len(shown), size), name_group_kinds(answers), strict=True):
        members = shown.iloc[start : start + size].sort_values("confidence", ascending=False, kind="stable")
        first = members.iloc[0]
        groups.append(
            {
                "id": first["problem_id"],
                "level": None if pd.isna(first["level"]) else int(first["level"]),
                "kind": kind,
                "question": decode(first["prompt_ids"]),
                "gold": first["answer"],
                "answers": [list(map(to_plain_value, row)) for row in members[list(FIELDS)].itertuples(index=False)],
            }
        )
    return groups


def to_plain_value(value: Any) -> Any:
    """A value that JSON can hold; floats with DIGITS significant digits, and what is no number as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    return value


def load_shipped_objective(name: str) -> Callable[..., Tensor]:
    """An objective with the values of configs/objective: the paper's."""
    return instantiate(OmegaConf.load(CONFIGS / "objective" / f"{name}.yaml"))


def make_decoder(folder: Path) -> Callable[[Sequence[int]], str | None]:
    """Prompt ids -> text by the tokenizer beside the run's last checkpoint; None where there is none."""
    files = sorted(folder.glob("checkpoints/step_*/tokenizer.json"))
    if not files:
        return lambda ids: None
    tokenizer = Tokenizer.from_file(str(files[-1]))
    return lambda ids: tokenizer.decode(list(map(int, ids)), skip_special_tokens=True).strip()
