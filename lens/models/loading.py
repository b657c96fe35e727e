"""Loads a causal language model and its tokenizer from the hub or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lens.distributed.collectives import world_size
from lens.distributed.room import make_room
from lens.errors import ConfigError
from lens.models.flex_attention import runs_here
from lens.models.hollow import SHARDS_FOLDER, find_files, has_shards, open_hollow, read_weights
from lens.models.host_memory import check_host_memory, count_stored
from lens.models.packing import share_prompts, shares_prompts
from lens.models.shared_prompts import FLEX_SHARED_PROMPTS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
FLEX = "flex_attention"
VALID = "must be a causal language model by name or folder, without code of its own: only transformers' runs"


def check_model(name_or_path: str, key: str = "model.name_or_path") -> None:
    """Refuse a model that cannot be found, or whose config needs code of its own, without loading its weights.

    Args:
        name_or_path: a Hugging Face name, or a folder.
        key: the config key that names it, for the error message.

    Raises:
        ConfigError: there is no such model, or the folder has no config or no weights.
    """
    folder = Path(name_or_path)
    if name_or_path.startswith(("/", ".", "~")) and not folder.exists():
        raise ConfigError(key, name_or_path, "must be a folder that exists, or a name on the hub")
    if folder.exists() and not (folder / "config.json").is_file():
        raise ConfigError(key, name_or_path, "must be a folder in Hugging Face format (it has no config.json)")
    if folder.exists() and not [*folder.glob("*.safetensors"), *folder.glob(f"{SHARDS_FOLDER}/*.safetensors")]:
        raise ConfigError(key, name_or_path, "must be a folder with weights (it has no *.safetensors)")
    try:
        AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(key, name_or_path, f"{VALID} ({reason})") from error


def check_attention(attention: str | None) -> None:
    """Refuse model.attention=flex_attention where it does not run.

    Raises:
        ConfigError: it does not run here.
    """
    if attention == FLEX and not runs_here():
        raise ConfigError("model.attention", FLEX, "must be null, sdpa or eager: FlexAttention does not run here")


def load_model(
    name_or_path: str,
    *,
    dtype: str = "float32",
    attention: str | None = None,
    stop: Sequence[str] = (),
    key: str = "model.name_or_path",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer. Only safetensors are read, and none of their own code runs.

    The model goes to the GPU if there is one. With several processes it has no weights yet, and
    `lens.models.sharding.shard_model` reads this process's part of them; where they cannot be read in parts, all are on
    the CPU until then. Dropout is off, so that training sees the probabilities that answers were sampled with.
    Completions share the pass over their prompt if the model can; see `share_prompts`.

    Args:
        name_or_path: a Hugging Face name, or a folder.
        dtype: data type of the weights, one of DTYPES.
        attention: transformers' name of an attention implementation. None: transformers chooses, and on a GPU shared
            prompts use FlexAttention if it runs there.
        stop: texts of one token each that end an answer, besides the model's own end tokens.
        key: the config key that names the model, for error messages.

    Raises:
        ConfigError: there is no such model, it needs code of its own, the folder lacks a tokenizer or some weights, the
            dtype is unknown, the attention does not run here, a text of ``stop`` is not one token, or no token ends a
            sequence.
    """
    if dtype not in DTYPES:
        raise ConfigError("model.dtype", dtype, f"must be one of {', '.join(DTYPES)}")
    check_attention(attention)
    check_model(name_or_path, key)
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        model = load_weights(name_or_path, DTYPES[dtype], "sdpa" if attention == FLEX else attention, key)
    except ImportError as error:
        valid = f"must be an attention that runs here ({str(error).strip().splitlines()[0]})"
        raise ConfigError("model.attention", attention, valid) from error
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(key, name_or_path, f"{VALID} ({reason})") from error
    if tokenizer.eos_token_id is None and model.generation_config.eos_token_id is None:
        raise ConfigError(key, name_or_path, "must have a tokenizer with an end-of-sequence token")
    add_end_tokens(model, tokenizer, stop)
    use_flex_attention(model, attention)
    return model, tokenizer


def add_end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Let texts of one token each end an answer, too: their ids join those of the generation config, and are saved.

    Raises:
        ConfigError: a text is not one token.
    """
    named = model.generation_config.eos_token_id
    ends = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise ConfigError("model.stop", text, f"must be one token of the model's, and is {len(ids)}")
        ends.add(ids[0])
    if texts:
        model.generation_config.eos_token_id = sorted(ends)


def load_weights(
    name_or_path: str, dtype: torch.dtype, attention: str | None, key: str = "model.name_or_path"
) -> PreTrainedModel:
    """Load the model of `load_model`; one process reads a checkpoint in parts, too.

    Raises:
        ConfigError: this host has too little memory for a model that is loaded whole.
        ImportError, OSError, ValueError, SafetensorError: as transformers' from_pretrained.
    """
    device = "cuda" if torch.cuda.is_available() and world_size() == 1 else "cpu"
    if world_size() > 1 or has_shards(name_or_path):
        hollow = open_hollow(name_or_path, dtype, attention)
        if hollow is not None and world_size() == 1:
            check_host_memory(name_or_path, {"weights": sum(p.nbytes for p in hollow.parameters())}, key)
            make_room(hollow, device)
            read_weights(hollow)
        if hollow is not None:
            return hollow
    with suppress(LookupError):  # transformers knows other names of files, too
        check_host_memory(name_or_path, {"weights": count_stored(find_files(name_or_path)) * dtype.itemsize}, key)
    chosen = {"dtype": dtype, "attn_implementation": attention, "use_safetensors": True}
    model = AutoModelForCausalLM.from_pretrained(name_or_path, trust_remote_code=False, **chosen)
    share_prompts(model.eval())
    return model.to(device)


def use_flex_attention(model: PreTrainedModel, attention: str | None) -> None:
    """Let FlexAttention compute shared prompts, where it runs and no other attention is asked for.

    Raises:
        ConfigError: FlexAttention is asked for, and the model does not share prompts.
    """
    if attention == FLEX and not shares_prompts(model):
        valid = f"must be null, sdpa or eager: the layers of {type(model).__name__} do not say who shares a prompt"
        raise ConfigError("model.attention", FLEX, valid)
    if shares_prompts(model) and attention in (None, FLEX) and runs_here():
        model.set_attn_implementation(FLEX_SHARED_PROMPTS)
