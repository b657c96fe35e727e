"""Prepares stored rollouts for the page's group browser: groups, and their answers under GRPO and LENS."""

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
from lens.grading.verifiers import split_gold
from lens.reporting.arms import Arm
from lens.runs.answers import find_answers, read_answers
from lens.runs.run import Run
from lens.training.stored_experience import STORED, find_group_size, name_group_kinds, weigh_again

# The page stores an answer as a list in this order, so that it does not repeat the names for each answer.
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
DIGITS = 6  # significant digits of numbers that were stored as float32


@dataclass(frozen=True)
class Chunk:
    """The groups of one run at one step, as plain lists and dicts; the page parses them when they are first shown."""

    key: str
    step: int
    groups: list[dict[str, Any]]


@dataclass(frozen=True)
class BrowsedRun:
    """One run in the browser, with all or some of its stored rollouts."""

    label: str
    seed: int
    chunks: list[Chunk]


def choose_runs(arms: Sequence[Arm], limit: int) -> tuple[list[BrowsedRun], list[str]]:
    """Choose one run of each arm, and return them with a line for each run that has unreadable files.

    Arms of one setting show the same seed if they share one, and so the same first questions. The runs hold ``limit``
    answers in all, at most. If not all fit, it takes steps at equal distances, with the first and the last among them,
    and the first groups of each step.
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
    """Read stored rollouts of a run, ``limit`` answers at most, and return a line if some files cannot be read."""
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
    """Return the groups of one file with their answers, the most confident first; ``limit`` answers at most."""
    size = find_group_size(answers)
    answers = answers.head(max(size, limit // size * size))
    under = {name: weigh_again(answers, load_shipped_objective(name)) for name in ("grpo", "lens")}
    shown = answers.rename(columns={"advantage": "trained"}).assign(
        reward=answers["calibrated_reward"],
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
                "gold": split_gold(first["answer"]).answer,
                "answers": [list(map(to_plain_value, row)) for row in members[list(FIELDS)].itertuples(index=False)],
            }
        )
    return groups


def to_plain_value(value: Any) -> Any:
    """Return a value that JSON can hold: floats with DIGITS significant digits, nan and infinity as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    return value


def load_shipped_objective(name: str) -> Callable[..., Tensor]:
    """Load an objective from configs/objective, with the paper's values."""
    return instantiate(OmegaConf.load(CONFIGS / "objective" / f"{name}.yaml"))


def make_decoder(folder: Path) -> Callable[[Sequence[int]], str | None]:
    """Make a function from prompt ids to text, with the tokenizer of the run's last checkpoint.

    Without a checkpoint, the function returns None.
    """
    files = sorted(folder.glob("checkpoints/step_*/tokenizer.json"))
    if not files:
        return lambda ids: None
    tokenizer = Tokenizer.from_file(str(files[-1]))
    return lambda ids: tokenizer.decode(list(map(int, ids)), skip_special_tokens=True).strip()
