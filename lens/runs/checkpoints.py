"""Writes and reads checkpoints: everything that a run needs to resume exactly where it was.

A checkpoint is written under a temporary name, and renamed when it is complete and on disk. So each is complete or
absent. Checkpoints that it replaces are removed only after that.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lens import __version__
from lens.distributed.collectives import failing_together, gather_tensor, is_first, world_size
from lens.errors import ConfigError, FailedElsewhere, RunFailed
from lens.files import checksum, flush_to_disk
from lens.models.hollow import SHARDS_FOLDER, silence_one_process_warning
from lens.models.lora import iterate_adapter_weights, save_adapters
from lens.models.master_weights import empty_state
from lens.models.sharding import gather_weights
from lens.runs.parts import can_be_in_parts, join_parts, name_weights, save_description, save_parts
from lens.seeding import random_states

ADAPTER_FOLDER = "adapter"  # beside the model's files, transformers would load them by itself
OPTIMIZER_FOLDER = "optimizer"
STATE_FILE = "training_state.pt"
CHECKSUMS_FILE = "checksums.json"
UNFINISHED = ".unfinished"
REPLACED = f".replaced{UNFINISHED}"
TRAINING_ONLY = (OPTIMIZER_FOLDER, STATE_FILE, CHECKSUMS_FILE)  # what a model's own folder does not need
NEEDED = {"step", "config", "prompts", "random", "param_groups"}  # keys that every training state has


@dataclass(frozen=True)
class CheckpointFolder:
    """The folder of a run's checkpoints, and what every checkpoint says about its run.

    Attributes:
        path: the folder.
        identity: values that every checkpoint's state gets: the config, hashes of all prompts, the id of the W&B run.
    """

    path: Path
    identity: dict[str, Any]

    def save(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        **choices: Any,
    ) -> Path:
        """Save a checkpoint with the run's identity: see `save_checkpoint`."""
        return save_checkpoint(self.path, model, tokenizer, optimizer, {**self.identity, **state}, **choices)


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    keep: int,
    best: int | None = None,
    whole: bool = False,
) -> Path:
    """Write checkpoints/step_*/ (Hugging Face format, plus the training state), and remove old checkpoints.

    All processes call it together. Each writes its part of the weights and of the optimizer's state, so that none
    gathers them; the first writes everything else. If one of them cannot write, all raise.

    Args:
        folder: the run's checkpoints folder.
        model, tokenizer: saved as any Hugging Face model, as safetensors. The saved weights include adapters, which are
            also saved in a folder of their own.
        optimizer: its tensors are saved by the names of the model's parameters, so any number of processes can load it.
        state: plain values and tensors; ``state["step"]`` names the checkpoint.
        keep: how many checkpoints to keep: the latest, up to this one.
        best: the step of one more checkpoint to keep.
        whole: make whole files of the parts of the weights, which anybody can load. One process writes no parts.

    Returns:
        The checkpoint's folder.

    Raises:
        RunFailed: the checkpoint could not be written, as on a full disk; earlier checkpoints stay as they were.
    """
    target = folder / f"step_{state['step']:06d}"
    unfinished = target.with_name(target.name + UNFINISHED)
    state = {**state, "lens_version": __version__}
    try:
        with failing_together():
            if is_first():
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
        save_parts(unfinished / OPTIMIZER_FOLDER, name_optimizer_tensors(model, optimizer))
        in_parts = can_be_in_parts(model)
        if in_parts:
            save_parts(unfinished / SHARDS_FOLDER, name_weights(model))
        weights = None if in_parts else gather_weights(model)
        adapters = {name: gather_tensor(parameter.detach()) for name, parameter in iterate_adapter_weights(model)}
        with failing_together():
            if is_first():
                if in_parts and whole:
                    join_parts(unfinished)
                write_files(unfinished, model, weights, adapters, tokenizer, optimizer, state)
                put_in_place(unfinished, target)
                prune_checkpoints(folder, state["step"], keep=keep, best=best)
    except (OSError, RuntimeError, SafetensorError, CheckpointException, FailedElsewhere) as error:
        if is_first():
            shutil.rmtree(unfinished, ignore_errors=True)
            restore_replaced_name(folder)
        last = max(list_checkpoints(folder), key=read_step, default=None)
        left = f"the last complete one is {last.name}" if last else "there is no earlier one"
        raise RunFailed(f"the checkpoint {target} could not be written ({first_line(error)}); {left}") from error
    return target


def write_files(
    folder: Path,
    model: PreTrainedModel,
    weights: dict[str, Tensor] | None,
    adapters: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write all files of one checkpoint but those in parts, and wait until the whole folder is on disk.

    ``weights`` is what `gather_weights` returned. The other arguments are those of `save_checkpoint`.
    """
    if can_be_in_parts(model):
        save_description(model, folder)
    else:
        model.save_pretrained(folder, state_dict=weights)
    if adapters:
        save_adapters(folder / ADAPTER_FOLDER, model, adapters)
    tokenizer.save_pretrained(folder)
    groups = optimizer.state_dict()["param_groups"]
    torch.save({**state, "param_groups": groups, "random": random_states()}, folder / STATE_FILE)
    sums = {str(path.relative_to(folder)): checksum(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=2) + "\n")
    for path in [*folder.rglob("*"), folder]:
        flush_to_disk(path)


def put_in_place(unfinished: Path, target: Path) -> None:
    """Give a complete checkpoint its name, and wait until the name is on disk; one of the same step is set aside."""
    if target.exists():  # the same step was saved before its evaluation
        target.rename(target.with_name(target.name + REPLACED))
    unfinished.rename(target)
    flush_to_disk(target.parent)


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


def load_state(checkpoint: Path, key: str = "resume") -> dict[str, Any]:
    """Load the training state of a checkpoint, after comparing all its files with their checksums.

    Args:
        checkpoint: the folder of the checkpoint.
        key: the config key that names it, for error messages.

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
        raise ConfigError(key, str(checkpoint), valid) from error
    if damaged:
        raise ConfigError(key, str(checkpoint), f"must be a complete checkpoint (damaged: {', '.join(damaged)})")
    try:
        state = torch.load(checkpoint / STATE_FILE, weights_only=True)
        missing = NEEDED - state.keys()
    except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError) as error:
        valid = f"must be a checkpoint of this program ({STATE_FILE}: {first_line(error)})"
        raise ConfigError(key, str(checkpoint), valid) from error
    if "lens_version" not in state:
        valid = "must be a checkpoint of lens 0.2; lens 0.1 wrote it, and can resume it"
        raise ConfigError(key, str(checkpoint), valid)
    if missing:
        valid = (
            f"must be a checkpoint of this version of the program ({STATE_FILE} has no {', '.join(sorted(missing))})"
        )
        raise ConfigError(key, str(checkpoint), valid)
    return state


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if it has none.

    Of a CheckpointException it is that of the error behind it; with several processes it says in which it was.
    """
    if isinstance(error, CheckpointException) and error.failures:
        number, (cause, _) = min(error.failures.items())
        return (f"process {number}: " if world_size() > 1 else "") + first_line(cause)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
