"""Checkpoints: everything a run needs to go on exactly, written beside and renamed, so that each is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lens.errors import ConfigError, RunFailed

STATE_FILE = "training_state.pt"
CHECKSUMS_FILE = "checksums.json"
UNFINISHED = ".unfinished"
NEEDED = {"step", "config", "random"}  # of a training state, whatever else it holds


def random_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's global generators, as plain values."""
    version, python, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(python), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """The inverse of `random_states`."""
    version, python, gauss = states["python"]
    random.setstate((version, tuple(python), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state_all(states["cuda"])


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, Any],
    *,
    keep: int,
    best: int | None = None,
) -> Path:
    """Write checkpoints/step_*/ (Hugging Face format, plus the training state) and drop those that are not to stay.

    Args:
        folder: the run's checkpoints folder.
        model, tokenizer: saved as any Hugging Face model, safetensors.
        state: plain values and tensors; ``state["step"]`` names the checkpoint.
        keep: how many checkpoints stay, the latest up to this one.
        best: the step of one more that stays.

    Returns:
        The checkpoint's folder.

    Raises:
        RunFailed: it could not be written, as on a full disk; the checkpoints before it are as they were.
    """
    target = folder / f"step_{state['step']:06d}"
    unfinished = target.with_name(target.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        torch.save({**state, "random": random_states()}, unfinished / STATE_FILE)
        sums = {path.name: checksum(path) for path in sorted(unfinished.iterdir())}
        (unfinished / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=2) + "\n")
        for path in unfinished.iterdir():
            flush_to_disk(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        last = max(all_checkpoints(folder), key=step_of, default=None)
        whole = f"the last whole one is {last.name}" if last else "there is none before it"
        raise RunFailed(f"the checkpoint {target} could not be written ({one_line(error)}); {whole}") from error
    drop(target)
    unfinished.rename(target)
    flush_to_disk(folder)
    prune(folder, state["step"], keep=keep, best=best)
    return target


def prune(folder: Path, step: int, *, keep: int, best: int | None) -> None:
    """Drop checkpoints that are not to stay, of those up to a step, and what a kill has left of others; see `save`."""
    for leftover in folder.glob(f"*{UNFINISHED}"):
        shutil.rmtree(leftover)
    for old in [c for c in all_checkpoints(folder) if step_of(c) <= step][:-keep]:
        if step_of(old) != best:
            drop(old)


def drop(checkpoint: Path) -> None:
    """Remove a checkpoint, if it is there, so that a kill in the middle of it leaves no half of one."""
    if checkpoint.exists():
        shutil.rmtree(checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.dropped{UNFINISHED}")))


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; each was whole when it got its name."""
    found = folder.glob("step_*") if folder.is_dir() else []
    return sorted((path for path in found if re.fullmatch(r"step_\d+", path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The training state of a checkpoint whose files are all as they were written.

    Raises:
        ConfigError: it is no checkpoint of a run, or a file is missing or differs from its checksum.
    """
    try:
        sums = json.loads((checkpoint / CHECKSUMS_FILE).read_text())
        damaged = [name for name, value in sums.items() if checksum(checkpoint / name) != value]
    except (OSError, ValueError, AttributeError) as error:
        valid = f"a whole checkpoint of a run, or the run's folder ({one_line(error)})"
        raise ConfigError("resume", str(checkpoint), valid) from error
    if damaged:
        raise ConfigError("resume", str(checkpoint), f"a whole checkpoint (damaged: {', '.join(damaged)})")
    try:
        state = torch.load(checkpoint / STATE_FILE, weights_only=True)
        missing = NEEDED - state.keys()
    except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError) as error:
        valid = f"a checkpoint of this program ({STATE_FILE}: {one_line(error)})"
        raise ConfigError("resume", str(checkpoint), valid) from error
    if missing:
        valid = f"a checkpoint of this version of the program ({STATE_FILE} has no {', '.join(sorted(missing))})"
        raise ConfigError("resume", str(checkpoint), valid)
    return state


def one_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
