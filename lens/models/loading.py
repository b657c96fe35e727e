"""Loads a causal language model and its tokenizer from the hub or a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lens.distributed.collectives import world_size
from lens.errors import ConfigError
from lens.models.flex_attention import runs_here
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
    if folder.exists() and not list(folder.glob("*.safetensors")):
        raise ConfigError(key, name_or_path, "must be a folder with weights (it has no *.safetensors)")
    try:
        AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(key, name_or_path, f"{VALID} ({reason})") from error


def load_model(
    name_or_path: str, *, dtype: str = "float32", attention: str | None = None, key: str = "model.name_or_path"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer. Only safetensors are read, and none of their own code runs.

    The model goes to the GPU if there is one. With several processes it stays on the CPU, and
    `lens.models.sharding.shard_model` moves it. Dropout is off, so that training sees the probabilities that answers
    were sampled with. Completions share the pass over their prompt if the model can; see `share_prompts`.

    Args:
        name_or_path: a Hugging Face name, or a folder.
        dtype: data type of the weights, one of DTYPES.
        attention: transformers' name of an attention implementation. None: transformers chooses, and on a GPU shared
            prompts use FlexAttention if it runs there.
        key: the config key that names the model, for error messages.

    Raises:
        ConfigError: there is no such model, it needs code of its own, the folder lacks a tokenizer or some weights, the
            dtype is unknown, the attention does not run here, or no token ends a sequence.
    """
    if dtype not in DTYPES:
        raise ConfigError("model.dtype", dtype, f"must be one of {', '.join(DTYPES)}")
    if attention == FLEX and not runs_here():
        raise ConfigError("model.attention", FLEX, "must be null, sdpa or eager: FlexAttention does not run here")
    check_model(name_or_path, key)
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        by_transformers = "sdpa" if attention == FLEX else attention
        chosen = {"dtype": DTYPES[dtype], "attn_implementation": by_transformers, "use_safetensors": True}
        model = AutoModelForCausalLM.from_pretrained(name_or_path, trust_remote_code=False, **chosen)
    except ImportError as error:
        valid = f"must be an attention that runs here ({str(error).strip().splitlines()[0]})"
        raise ConfigError("model.attention", attention, valid) from error
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(key, name_or_path, f"{VALID} ({reason})") from error
    if tokenizer.eos_token_id is None and model.generation_config.eos_token_id is None:
        raise ConfigError(key, name_or_path, "must have a tokenizer with an end-of-sequence token")
    share_prompts(model.eval())
    if attention == FLEX and not shares_prompts(model):
        valid = f"must be null, sdpa or eager: the layers of {type(model).__name__} do not say who shares a prompt"
        raise ConfigError("model.attention", FLEX, valid)
    if shares_prompts(model) and attention in (None, FLEX) and runs_here():
        model.set_attn_implementation(FLEX_SHARED_PROMPTS)
    return model.to("cuda" if torch.cuda.is_available() and world_size() == 1 else "cpu"), tokenizer
