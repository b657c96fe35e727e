"""Builds a model without weights, and reads into it those that this process holds.

`open_hollow` builds the model on the meta device, where a weight has a shape and no numbers. Then `shard_model` says
which part of each weight is this process's, and `read_weights` reads that part from the safetensors. So no process
ever holds the whole model on its host.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import CUSTOM_METADATA_KEY, HuggingFaceStorageReader
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from lens.distributed.collectives import is_first, world_size
from lens.models.packing import share_prompts

log = logging.getLogger(__name__)

SHARDS_FOLDER = "shards"  # of a checkpoint whose weights several processes have written, each its part
META = torch.device("meta")


@dataclass(frozen=True)
class Source:
    """Where a model's weights are.

    Attributes:
        files: the safetensors.
        names: the name in the files of each parameter and persistent buffer. Tied parameters have the first one's.
    """

    files: tuple[str, ...]
    names: dict[str, str]


def has_shards(name_or_path: str) -> bool:
    """Return whether a folder is a checkpoint whose weights are in parts."""
    return (Path(name_or_path) / SHARDS_FOLDER).is_dir()


def open_hollow(name_or_path: str, dtype: torch.dtype, attention: str | None) -> PreTrainedModel | None:
    """Build a causal language model on the meta device, with real buffers, and note where its weights are.

    Args:
        name_or_path: a Hugging Face name, a folder, or a checkpoint in parts.
        dtype: data type of the weights.
        attention: transformers' name of an attention implementation. None: transformers chooses.

    Returns:
        The model, in evaluation mode; its attribute ``source`` is a `Source`. None where its weights cannot be read in
        parts, which one line says.

    Raises:
        ImportError, OSError, ValueError, SafetensorError: as transformers' from_pretrained.
    """
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    with META:
        options = {} if attention is None else {"attn_implementation": attention}
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False, **options).eval()
    try:
        source = find_source(model, find_files(name_or_path))
        if dtype == torch.bfloat16 and model._keep_in_fp32_modules_strict:
            raise LookupError("some of its weights stay in float32")
        share_prompts(model)
    except (LookupError, NotImplementedError, RuntimeError) as error:
        if is_first():
            reason = str(error).strip("'\"").splitlines()[0]
            log.warning("Each process loads all of %s before it keeps its part: %s", name_or_path, reason)
        return None
    make_buffers(model)
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(name_or_path)
    model.source = source
    stored = {name: buffer for name, buffer in model.named_buffers() if name in source.names}
    read_tensors(source, stored, alone=True)
    return model


def find_files(name_or_path: str) -> list[str]:
    """Return the safetensors of a model, which are fetched first if a hub has them.

    Raises:
        LookupError: there are none.
    """
    if has_shards(name_or_path):
        return [str(path) for path in sorted((Path(name_or_path) / SHARDS_FOLDER).glob("*.safetensors"))]
    quietly = {"_raise_exceptions_for_missing_entries": False}
    if whole := cached_file(name_or_path, "model.safetensors", **quietly):
        return [whole]
    if index := cached_file(name_or_path, "model.safetensors.index.json", **quietly):
        return get_checkpoint_shard_files(name_or_path, index)[0]
    raise LookupError("it has no model.safetensors")


def find_source(model: PreTrainedModel, files: Sequence[str]) -> Source:
    """Find the name in the files of each parameter and persistent buffer of a model.

    Names change as transformers changes them when it loads a model.

    Raises:
        LookupError: a weight is absent, has another shape, or is made of several others.
    """
    stored: Counter[str] = Counter()
    in_parts, shapes = False, {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            in_parts |= CUSTOM_METADATA_KEY in (opened.metadata() or {})  # torch writes it where each has a part
            stored.update(opened.keys())
            shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    if not in_parts and (twice := [name for name, count in stored.items() if count > 1]):
        raise LookupError(f"{twice[0]} stands in two of its files")
    if integers := [name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()]:
        raise LookupError(f"{integers[0]} is of integers, which torch does not join")
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    wanted, found = model.state_dict(), {}
    for stored_name in stored:
        name, converter = rename_source_key(stored_name, renamings, converters, model.base_model_prefix, wanted)
        if converter is not None and name in wanted:
            raise LookupError(f"transformers makes {name} of other weights")
        if name in wanted and not in_parts and shapes[stored_name] != list(wanted[name].shape):
            raise LookupError(f"{stored_name} has another shape than the model's")
        if name in wanted:
            found[name] = stored_name
    aliases: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        aliases.setdefault(id(tensor), []).append(name)
    names = {}
    for same in aliases.values():
        there = [found[name] for name in same if name in found]
        if len(there) != 1:
            raise LookupError(f"its files have {len(there)} weights for {' and '.join(same)}")
        names[same[0]] = there[0]
    return Source(tuple(files), names)


@torch.no_grad()
def make_buffers(model: PreTrainedModel) -> None:
    """Make the buffers real that are on the meta device, on the CPU, and compute those that no file holds."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
    model.initialize_weights()  # weights are on the meta device, where this does nothing


def is_hollow(model: nn.Module) -> bool:
    """Return whether a model still lacks weights, and knows where to read them."""
    return hasattr(model, "source") and any(parameter.is_meta for parameter in model.parameters())


def read_weights(model: PreTrainedModel) -> None:
    """Read this process's part of each weight, in the weight's data type. All processes call it together.

    Args:
        model: from `open_hollow`, sharded or not, after `lens.distributed.room.make_room`. Adapters keep their numbers.
    """
    weights = {plain_name(name): p.detach() for name, p in model.named_parameters() if ".lora_" not in name}
    read_tensors(model.source, weights, alone=world_size() == 1)


def plain_name(name: str) -> str:
    """Return the name that a weight has in the model without adapters."""
    return name.replace(".base_layer.", ".")


def read_tensors(source: Source, tensors: dict[str, Tensor], *, alone: bool) -> None:
    """Read tensors, or this process's parts of them, in their own data type.

    Args:
        source: where they are.
        tensors: where they go, by their names in the model.
        alone: whether this process reads without the others.
    """
    if not tensors:
        return
    wanted = {source.names[name]: tensor for name, tensor in tensors.items()}
    with silence_one_process_warning():
        dcp.load(wanted, storage_reader=FilesReader(source.files), no_dist=alone)


@contextmanager
def silence_one_process_warning() -> Iterator[None]:
    """Silence torch's warning that it assumes a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


class FilesReader(HuggingFaceStorageReader):
    """Reads some of the safetensors of a folder: others beside them may hold other weights by the same names."""

    def __init__(self, files: Sequence[str]):
        super().__init__(str(Path(files[0]).parent))
        self.fs = ChosenFiles(files)


class ChosenFiles(FileSystem):
    """A folder with nothing in it but some files."""

    def __init__(self, files: Sequence[str]):
        self.files = list(files)

    def ls(self, path: str) -> list[str]:
        """Return the files, whatever the folder."""
        return self.files
