"""Low-rank adapters (LoRA): two small matrices beside each linear layer are trained, and the model's own weights stay.

peft makes the layers. The model stays one of transformers, but its weights get other names: a layer's own are below
`base_layer`. Engines and checkpoints know nothing of that: they get the sum of both under its plain name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lens.errors import ConfigError

ADAPTER = "default"  # peft's name of the only one
WEIGHTS_FILE = "adapter_model.safetensors"  # with its adapter_config.json, what PeftModel.from_pretrained reads


def check_adapters(model: PreTrainedModel, settings: DictConfig) -> None:
    """Hold a config's model.lora against the model.

    Raises:
        ConfigError: peft is not installed, or the model has no such layers.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        valid = f"null, or an installed peft: pip install --constraint constraints.txt --editable '.[lora]' ({error})"
        raise ConfigError("model.lora", OmegaConf.to_container(settings), valid) from error
    head = model.get_output_embeddings()
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    if settings.target_modules == "all-linear":
        return
    for target in settings.target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            valid = f"all-linear, or some of {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}"
            raise ConfigError("model.lora.target_modules", list(settings.target_modules), valid)


def add_adapters(model: PreTrainedModel, settings: DictConfig, seed: int) -> None:
    """Put adapters into a model, which are all that is trained from then on; they change nothing before that.

    Args:
        model: without adapters; its layers are replaced.
        settings: the config's model.lora; configs/model/lora explains each key.
        seed: of their first weights.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = OmegaConf.to_container(settings).pop("target_modules")
    chosen = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name_or_path,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(chosen, model, ADAPTER)
    chosen.target_modules = sorted(chosen.target_modules)
    model.eval()


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` has been here."""
    return hasattr(model, "peft_config")


def iterate_plain_weights(model: nn.Module, *, remove_duplicate: bool) -> Iterator[tuple[str, Tensor]]:
    """Names and weights of the model as it is without adapters, each with what they add to it; shards stay shards.

    Args:
        model: with adapters or without.
        remove_duplicate: name tied weights once.
    """
    for name, parameter in model.named_parameters(remove_duplicate=remove_duplicate):
        if ".lora_" in name:
            continue
        layer, adapted, own = name.partition(".base_layer.")
        if not adapted:
            yield name, parameter.detach()
            continue
        with torch.no_grad():
            added = model.get_submodule(layer).get_delta_weight(ADAPTER) if own == "weight" else 0
            weight = parameter + added
        yield f"{layer}.{own}", weight


def iterate_adapter_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The adapters' own weights, by the names that peft stores them under."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            yield f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}", parameter


def save_adapters(folder: Path, model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Write a folder that ``PeftModel.from_pretrained(base_model, folder)`` loads.

    Args:
        folder: is made.
        model: with adapters.
        weights: theirs, whole, by the names of `adapter_weights`.
    """
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)
    model.peft_config[ADAPTER].save_pretrained(folder)


@torch.no_grad()
def load_adapters(folder: Path, model: PreTrainedModel) -> None:
    """The inverse of `save_adapters`, for a model that has adapters of the same sizes, and is not sharded yet."""
    weights = load_file(folder / WEIGHTS_FILE)
    for name, parameter in iterate_adapter_weights(model):
        parameter.copy_(weights[name])
