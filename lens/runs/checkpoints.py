"""Writes and reads checkpoints: everything that a run needs to resume exactly where it was.

A checkpoint is written under a temporary name and renamed when it is complete. So each is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lens import __version__
from lens.distributed.collectives import barrier, gather_tensor, is_first, world_size
from lens.errors import ConfigError, RunFailed
from lens.models.lora import has_adapters, iterate_adapter_weights, save_adapters
from lens.models.master_weights import empty_state
from lens.models.sharding import gather_named_weights
from lens.seeding import random_states

ADAPTER_FOLDER = "adapter"  # beside the model's files, transformers would load them by itself
OPTIMIZER_FOLDER = "optimizer"
STATE_FILE = "training_state.pt"
CHECKSUMS_FILE = "checksums.json"
UNFINISHED = ".unfinished"
REPLACED = f".replaced{UNFINISHED}"
NEEDED = {"step", "config", "random", "param_groups"}  # keys that every training state has


@dataclass(frozen=True)
class CheckpointFolder:
    """The folder of a run's checkpoints, and what every checkpoint says about its run.

    Attributes:
        path: the folder.
        identity: values that every checkpoint's state gets: the config and the id of the W&B run.
    """

    path: Path
    identity: dict[str, Any]

    def save(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        *,
        keep: int,
        best: int | None = None,
    ) -> Path:
        """Save a checkpoint with the run's identity: see `save_checkpoint`."""
        return save_checkpoint(self.path, model, tokenizer, optimizer, {**self.identity, **state}, keep=keep, best=best)


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    keep: int,
    best: int | None = None,
) -> Path:
    """Write checkpoints/step_*/ (Hugging Face format, plus the training state), and remove old checkpoints.

    All processes call it together. Each writes its shard of the optimizer's state; the first writes everything else.

    Args:
        folder: the run's checkpoints folder.
        model, tokenizer: saved as any Hugging Face model, as safetensors. The saved weights include adapters, which are
            also saved in a folder of their own.
        optimizer: its tensors are saved by the names of the model's parameters, so any number of processes can load it.
        state: plain values and tensors; ``state["step"]`` names the checkpoint.
        keep: how many checkpoints to keep: the latest, up to this one.
        best: the step of one more checkpoint to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        RunFailed: the checkpoint could not be written, as on a full disk; earlier checkpoints stay as they were.
    """
    target = folder / f"step_{state['step']:06d}"
    unfinished = target.with_name(target.name + UNFINISHED)
    try:
        if is_first():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        barrier()
        write_files(unfinished, model, tokenizer, optimizer, {**state, "lens_version": __version__})
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        last = max(list_checkpoints(folder), key=read_step, default=None)
        left = f"the last complete one is {last.name}" if last else "there is no earlier one"
        raise RunFailed(f"the checkpoint {target} could not be written ({first_line(error)}); {left}") from error
    if is_first():
        if target.exists():  # the same step was saved before its evaluation
            target.rename(target.with_name(target.name + REPLACED))
        unfinished.rename(target)
        flush_to_disk(folder)
        prune_checkpoints(folder, state["step"], keep=keep, best=best)
    barrier()
    return target


def write_files(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write the files of one checkpoint, each process its part, and wait until they are on disk."""
    if tensors := name_optimizer_tensors(model, optimizer):
        writer = HuggingFaceStorageWriter(str(folder / OPTIMIZER_FOLDER), save_distributed=True)
        with silence_one_process_warning():
            dcp.save(tensors, storage_writer=writer, no_dist=world_size() == 1)
    weights = gather_weights(model)
    adapters = {name: gather_tensor(parameter.detach()) for name, parameter in iterate_adapter_weights(model)}
    if not is_first():
        return
    model.save_pretrained(folder, state_dict=weights)
    if adapters:
        save_adapters(folder / ADAPTER_FOLDER, model, adapters)
    tokenizer.save_pretrained(folder)
    groups = optimizer.state_dict()["param_groups"]
    torch.save({**state, "param_groups": groups, "random": random_states()}, folder / STATE_FILE)
    sums = {str(path.relative_to(folder)): checksum(path) for path in list_files(folder)}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=2) + "\n")
    for path in folder.rglob("*"):
        flush_to_disk(path)


def name_optimizer_tensors(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state by "PARAMETER:NAME"; for a sharded model they are shards."""
    parameters = model.named_parameters()
    return {f"{name}:{key}": value for name, p in parameters for key, value in optimizer.state.get(p, {}).items()}


def restore_optimizer(
    checkpoint: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]
) -> None:
    """Load AdamW's state, whatever number of processes saved it.

    Args:
        checkpoint: the folder of the checkpoint.
        model, optimizer: the same model and optimizer as at saving; they may be sharded or not.
        groups: the param_groups of the training state.

    Raises:
        ConfigError: the checkpoint lacks tensors, such as master weights, which earlier versions did not have.
    """
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
    if not (checkpoint / OPTIMIZER_FOLDER).exists():  # the checkpoint is from before the first update
        return
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        optimizer.state[parameter] = empty_state(parameter)
    reader = HuggingFaceStorageReader(str(checkpoint / OPTIMIZER_FOLDER))
    tensors = name_optimizer_tensors(model, optimizer)
    if absent := sorted(tensors.keys() - reader.read_metadata().state_dict_metadata.keys()):
        valid = f"must be a checkpoint of this version of the program ({OPTIMIZER_FOLDER} has no {absent[0]})"
        raise ConfigError("resume", str(checkpoint), valid)
    with silence_one_process_warning():
        dcp.load(tensors, storage_reader=reader, no_dist=world_size() == 1)


@contextmanager
def silence_one_process_warning() -> Iterator[None]:
    """Silence torch's warning that it assumes a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def gather_weights(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Gather the weights on the first process, by name, as `gather_named_weights` does.

    Returns None for a single process without adapters, which can save the model as it is.
    """
    if world_size() == 1 and not has_adapters(model):
        return None
    weights = {}
    for name, tensor in gather_named_weights(model, remove_duplicate=True):
        if is_first():
            weights[name] = tensor.cpu()
    return weights


def list_files(folder: Path) -> list[Path]:
    """List the files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def prune_checkpoints(folder: Path, step: int, *, keep: int, best: int | None) -> None:
    """Remove old checkpoints up to a step, and what a kill left behind.

    ``keep`` and ``best`` are those of `save_checkpoint`. Checkpoints after the step stay.
    """
    for leftover in folder.glob(f"*{UNFINISHED}"):
        shutil.rmtree(leftover)
    for old in [c for c in list_checkpoints(folder) if read_step(c) <= step][:-keep]:
        if read_step(old) != best:
            drop_checkpoint(old)


def drop_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint; it is renamed first, so that a kill leaves no half checkpoint."""
    shutil.rmtree(checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.dropped{UNFINISHED}")))


def restore_replaced_name(folder: Path) -> None:
    """Restore the name of a checkpoint that was renamed to make place for a new one, if a kill came before that."""
    for former in folder.glob(f"step_*{REPLACED}"):
        target = former.with_name(former.name.removesuffix(REPLACED))
        if not target.exists():
            former.rename(target)


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, oldest first; each was complete when it got its name."""
    found = folder.glob("step_*") if folder.is_dir() else []
    return sorted((path for path in found if re.fullmatch(r"step_\d+", path.name)), key=read_step)


def read_step(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step_"))


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Load the training state of a checkpoint, after comparing all its files with their checksums.

    Raises:
        ConfigError: it is not a checkpoint of a run, lens 0.1 wrote it, or a file is missing or damaged.
    """
    try:
        sums = json.loads((checkpoint / CHECKSUMS_FILE).read_text())
        if STATE_FILE not in sums:
            raise ValueError(f"{CHECKSUMS_FILE} has no {STATE_FILE}")
        damaged = [name for name, value in sums.items() if checksum(checkpoint / name) != value]
    except (OSError, ValueError, AttributeError) as error:
        valid = f"must be a complete checkpoint of a run, or the run's folder ({first_line(error)})"
        raise ConfigError("resume", str(checkpoint), valid) from error
    if damaged:
        raise ConfigError("resume", str(checkpoint), f"must be a complete checkpoint (damaged: {', '.join(damaged)})")
    try:
        state = torch.load(checkpoint / STATE_FILE, weights_only=True)
        missing = NEEDED - state.keys()
    except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError) as error:
        valid = f"must be a checkpoint of this program ({STATE_FILE}: {first_line(error)})"
        raise ConfigError("resume", str(checkpoint), valid) from error
    if "lens_version" not in state:
        valid = "must be a checkpoint of lens 0.2; lens 0.1 wrote it, and can resume it"
        raise ConfigError("resume", str(checkpoint), valid)
    if missing:
        valid = (
            f"must be a checkpoint of this version of the program ({STATE_FILE} has no {', '.join(sorted(missing))})"
        )
        raise ConfigError("resume", str(checkpoint), valid)
    return state


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
