"""Writes tensors in parts, each process its own, and makes one Hugging Face folder of a checkpoint in parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
    consolidate_safetensors_files,
)
from transformers import PreTrainedModel

from lens.distributed.collectives import local_part, world_size
from lens.files import flush_to_disk
from lens.models.hollow import SHARDS_FOLDER, silence_one_process_warning
from lens.models.lora import iterate_plain_weights

BYTES_A_PART = 2**26  # of a file that a process writes: so much memory does writing take beside the tensors
BYTES_A_FILE = 5 * 10**9  # of a file of the whole model, as the hub likes them
WHOLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"


def can_be_in_parts(model: nn.Module) -> bool:
    """Return whether each process writes its part of the weights: it has read its part alone, too."""
    return world_size() > 1 and hasattr(model, "source")


def save_parts(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors, each process its part, and wait until they are on disk.

    Args:
        folder: is created.
        tensors: by name; those that are not sharded are written once. An empty dictionary writes nothing.

    Raises:
        CheckpointException: some process could not write; it is raised in all.
    """
    if not tensors:
        return
    numbers = split_into_files({name: local_part(tensor).nbytes for name, tensor in tensors.items()}, BYTES_A_PART)
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=numbers, save_distributed=True)
    with silence_one_process_warning():
        dcp.save(tensors, storage_writer=writer, no_dist=world_size() == 1)


def split_into_files(sizes: dict[str, int], most: int) -> dict[str, int]:
    """Return the number of each tensor's file, from 1 on: a file gets tensors in turn, of at most so many bytes in all.

    A tensor that is larger has a file to itself.
    """
    numbers, number, filled = {}, 1, 0
    for name, size in sizes.items():
        if filled and filled + size > most:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += size
    return numbers


def name_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return a model's weights and persistent buffers by their names in its files; shards stay shards.

    Adapters are merged into the weights that they adapt, which takes as much memory as this process's part of those.
    """
    names = model.source.names
    weights = {names[name]: weight for name, weight in iterate_plain_weights(model, remove_duplicate=True)}
    return weights | {names[name]: buffer for name, buffer in model.named_buffers() if name in names}


def save_description(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json and generation_config.json, which `PreTrainedModel.save_pretrained` writes beside weights."""
    model.config.architectures = [type(model).__name__.removeprefix("FSDP")]  # FSDP2 puts it before the name
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def join_parts(folder: Path) -> None:
    """Make whole files of the parts in a checkpoint's folder, a tensor at a time, and remove the parts."""
    parts = folder / SHARDS_FOLDER
    found = HuggingFaceStorageReader(str(parts)).read_metadata().state_dict_metadata
    sizes = {name: found[name].size.numel() * found[name].properties.dtype.itemsize for name in sorted(found)}
    numbers = split_into_files(sizes, BYTES_A_FILE)
    consolidate_safetensors_files(str(parts), str(folder), numbers)
    if max(numbers.values()) == 1:
        (only,) = folder.glob("model-*.safetensors")
        only.rename(folder / WHOLE_FILE)
        (folder / INDEX_FILE).unlink()
    shutil.rmtree(parts)


def write_model_folder(checkpoint: Path, target: Path, left_out: Iterable[str]) -> None:
    """Copy a checkpoint's model and tokenizer to a folder of their own, with whole files of weights.

    The folder gets its name once all of it is on disk.

    Args:
        checkpoint: a checkpoint, in parts or not. It stays as it is.
        target: the folder; it must not exist yet.
        left_out: names in the checkpoint that only training needs.
    """
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    ignore: Callable[..., set[str]] = shutil.ignore_patterns(*left_out)
    shutil.copytree(checkpoint, unfinished, ignore=ignore)
    if (unfinished / SHARDS_FOLDER).is_dir():
        join_parts(unfinished)
    for path in [*unfinished.rglob("*"), unfinished]:
        flush_to_disk(path)
    unfinished.rename(target)
    flush_to_disk(target.parent)
