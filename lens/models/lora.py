"""Adds, merges, saves and loads low-rank adapters (LoRA).

LoRA trains two small matrices beside each linear layer and leaves the model's own weights as they are. peft makes the
layers. The model stays one of transformers, but a layer's own weights move below the name `base_layer`. Engines and
checkpoints never see that name: they get the sum of a layer's own and adapter weights under the plain name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lens.errors import ConfigError

ADAPTER = "default"  # peft's name for the only adapter
WEIGHTS_FILE = "adapter_model.safetensors"  # PeftModel.from_pretrained reads it and adapter_config.json


def check_adapters(model: PreTrainedModel, settings: DictConfig) -> None:
    """Check that peft is installed and that the model has the layers that a config's model.lora names.

    Raises:
        ConfigError: peft is not installed, or the model has no such layers.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        command = "pip install --constraint constraints.txt --editable '.[lora]'"
        valid = f"must be null, unless peft is installed: {command} ({error})"
        raise ConfigError("model.lora", OmegaConf.to_container(settings), valid) from error
    head = model.get_output_embeddings()
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    if settings.target_modules == "all-linear":
        return
    for target in settings.target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            valid = f"must be all-linear, or some of {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}"
            raise ConfigError("model.lora.target_modules", list(settings.target_modules), valid)


def add_adapters(model: PreTrainedModel, settings: DictConfig, seed: int) -> None:
    """Put adapters into a model. From then on only they are trained. Until then they add zero to each layer.

    Args:
        model: a model without adapters; its layers are replaced.
        settings: the config's model.lora; configs/model/lora explains each key.
        seed: seed of the adapters' first weights.
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
    with torch.random.fork_rng(devices=[]), lending_weights(model):
        torch.manual_seed(seed)
        inject_adapter_in_model(chosen, model, ADAPTER)
    chosen.target_modules = sorted(chosen.target_modules)
    model.eval()


@contextmanager
def lending_weights(model: PreTrainedModel) -> Iterator[None]:
    """Lend each linear layer without weights some on the CPU that take no memory: peft puts adapters beside weights."""
    empty = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m.weight.is_meta]
    own = [module.weight for module in empty]
    for module, weight in zip(empty, own, strict=True):
        lent = torch.zeros((), dtype=weight.dtype, device="cpu").expand(weight.shape)
        module.weight = nn.Parameter(lent, requires_grad=weight.requires_grad)
    try:
        yield
    finally:
        for module, weight in zip(empty, own, strict=True):
            module.weight = weight.requires_grad_(module.weight.requires_grad)


def has_adapters(model: nn.Module) -> bool:
    """Return whether `add_adapters` has changed the model."""
    return hasattr(model, "peft_config")


def iterate_plain_weights(model: nn.Module, *, remove_duplicate: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and weights of the plain model, with the adapters merged in. Shards stay shards.

    Args:
        model: a model with or without adapters.
        remove_duplicate: yield tied weights once, not under each of their names.
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
            if isinstance(weight, DTensor):
                weight = weight.redistribute(placements=parameter.placements)
        yield f"{layer}.{own}", weight


def iterate_adapter_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the adapters' own weights, under the names that peft stores them by."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            yield f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}", parameter


def save_adapters(folder: Path, model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Write a folder that ``PeftModel.from_pretrained(base_model, folder)`` loads.

    Args:
        folder: is created; it must not exist yet.
        model: a model with adapters.
        weights: the adapters' gathered weights, by the names of `iterate_adapter_weights`.
    """
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)
    model.peft_config[ADAPTER].save_pretrained(folder)


@torch.no_grad()
def load_adapters(folder: Path, model: PreTrainedModel) -> None:
    """Read what `save_adapters` wrote into a model that has adapters of the same sizes and is not sharded yet."""
    weights = load_file(folder / WEIGHTS_FILE)
    for name, parameter in iterate_adapter_weights(model):
        parameter.copy_(weights[name])
