"""Finds the checkpoint that a run resumes from, and refuses a checkpoint of another config."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens.config.keys import FREE_TO_DIFFER, LENGTHLESS_SCHEDULES, RESUME_KEYWORDS, ROUNDING, flatten, is_listed
from lens.errors import ConfigError
from lens.runs.checkpoints import list_checkpoints, load_state
from lens.runs.run import PROVENANCE, SUMMARY

log = logging.getLogger(__name__)


def read_finished_summary(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the summary of a run that has reached max_steps; None for any other run, or if ``resume`` is "never".

    Raises:
        ConfigError: the finished run had another config, or lens 0.1 wrote it.
    """
    if config["resume"] == "never" or not (folder / SUMMARY).exists():
        return None
    summary = json.loads((folder / SUMMARY).read_text())
    if summary["step"] < config["trainer"]["max_steps"]:
        return None
    if "lens_version" not in summary:
        valid = f"must be never, or take another run folder: lens 0.1 wrote the run in {folder}"
        raise ConfigError("resume", config["resume"], valid)
    check_config(config, json.loads((folder / PROVENANCE).read_text())["config"], folder)
    return summary


def find_stored_config(folder: Path, resume: str) -> dict[str, Any] | None:
    """Return the config of the run that goes on in a folder; None if it is a new run, or its provenance is damaged.

    Args:
        folder: the run folder.
        resume: the config's ``resume``. A run folder or checkpoint to start from counts if the folder holds no run.
    """
    places = [folder] if resume in RESUME_KEYWORDS else [folder, Path(resume), Path(resume).parent.parent]
    for place in places:
        with suppress(OSError, ValueError, KeyError):
            return json.loads((place / PROVENANCE).read_text())["config"]
    return None


def find_state(folder: Path, config: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """Find the checkpoint that a run resumes from; return it with its training state, or None to begin anew.

    If the latest checkpoint is damaged, it warns and tries the one before it, unless ``resume`` is "must".

    Args:
        folder: the run folder.
        config: the run's resolved config. ``resume`` is "auto", "never", "must", or a run folder or checkpoint to start
            from if the run's own folder has no checkpoint.

    Raises:
        ConfigError: ``resume`` is "never" and the folder has a checkpoint, or it is "must" and the folder has none; no
            checkpoint can be used; or the checkpoint is of another config.
    """
    resume, candidates = config["resume"], list_checkpoints(folder / "checkpoints")
    if resume == "never" and candidates:
        valid = f"must be auto, or take another run folder: {folder} holds {candidates[-1].name}"
        raise ConfigError("resume", resume, valid)
    if resume == "must" and not candidates:
        valid = f"must be auto: {folder} holds no checkpoint (name it with hydra.run.dir=...)"
        raise ConfigError("resume", resume, valid)
    if not candidates and resume not in RESUME_KEYWORDS:
        candidates = list_checkpoints(Path(resume) / "checkpoints") or [Path(resume)]
    for place, checkpoint in reversed(list(enumerate(candidates))):
        try:
            state = load_state(checkpoint)
        except ConfigError as damage:
            if resume == "must" or place == 0:
                raise
            log.warning("%s; trying %s", damage, candidates[place - 1].name)
            continue
        check_config(config, state["config"], checkpoint)
        if (max_steps := config["trainer"]["max_steps"]) < state["step"]:
            valid = f"must be at least {state['step']}, the step of {checkpoint}"
            raise ConfigError("trainer.max_steps", max_steps, valid)
        return checkpoint, state
    return None


def check_config(config: dict[str, Any], of_checkpoint: dict[str, Any], where: Path) -> None:
    """Compare a config with the one that a run was started with; warn if results will be equal only up to rounding.

    Args:
        config, of_checkpoint: resolved configs.
        where: the run folder or checkpoint, for the message.

    Raises:
        ConfigError: they differ in keys that may not differ; the message has the keys and both values.
    """
    here, there = flatten(config), flatten(of_checkpoint)
    keys = [key for key in {**there, **here} if here.get(key) != there.get(key) and not is_listed(key, FREE_TO_DIFFER)]
    if here["optimizer.lr_scheduler"] in LENGTHLESS_SCHEDULES:
        keys = [key for key in keys if key != "trainer.max_steps"]
    said = {key: f"{key} is {here.get(key)!r}, there {there.get(key)!r}" for key in keys}
    rounding = [said.pop(key) for key in keys if is_listed(key, ROUNDING)]
    if said:
        valid = f"a run resumes only with its own config, that of {where}: {'; '.join(said.values())}"
        raise ConfigError("resume", config["resume"], valid)
    if rounding:
        log.warning("From here on, results are equal up to rounding, not bit for bit: %s", "; ".join(rounding))


def check_prompts(
    here: dict[str, dict[str, int]], state: dict[str, Any] | None, where: Path | None
) -> dict[str, Tensor]:
    """Compare what a run would ask with what it asked before it stopped.

    Args:
        here: the hashes of the problems of each set, by id (see `hash_prompts`).
        state: the training state of the checkpoint to resume from; None compares nothing.
        where: the checkpoint, for the message.

    Returns:
        The hashes of each set, int64 [N], as a training state holds them.

    Raises:
        ConfigError: a set differs; the message names the first problem that does.
    """
    found = {name: torch.tensor(list(hashes.values())) for name, hashes in here.items()}
    for name, now in found.items():
        if state is None or torch.equal(now, before := state["prompts"][name]):
            continue
        shared, ids = min(len(now), len(before)), list(here[name])
        place = next(iter((now[:shared] != before[:shared]).nonzero().flatten().tolist()), shared)
        if place < len(now):
            said = f"problem {place + 1} of {name}, {ids[place]}, has another id, prompt or answer, or is new"
        else:
            said = f"{len(before) - place} problem(s) of {name} after {ids[-1]} are missing"
        cause = "the data set, the tokenizer or its chat template has changed"
        raise ConfigError("resume", str(where), f"must be a checkpoint of the same prompts: {said}; {cause}")
    return found


def copy_history(source: Path, folder: Path, step: int) -> None:
    """Copy metrics and evaluations up to a step to the folder of the run that continues there.

    So that folder has the whole curve. metrics.jsonl is copied as it is, and the tracker cuts it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (source / "metrics.jsonl").is_file():
        shutil.copy(source / "metrics.jsonl", folder)
    for file in source.glob("evaluations/step_*.parquet"):
        if int(file.stem.split("_")[1]) <= step:
            (folder / "evaluations").mkdir(exist_ok=True)
            shutil.copy(file, folder / "evaluations")
