"""Finds a model's decoder and layers, compiles them, and recomputes them in the backward pass to save memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lens.errors import ConfigError


def find_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a causal language model that computes the last hidden states."""
    return model.base_model if model.base_model is not model else model.model  # Llama 4 names another part


def find_layers(model: PreTrainedModel, key: str) -> list[GradientCheckpointingLayer]:
    """Return the layers that transformers marks as fit for recomputing in the backward pass.

    Args:
        model: the model.
        key: the config key that asks for them, for the error message.

    Raises:
        ConfigError: transformers marks none.
    """
    if layers := [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        return layers
    valid = f"must be false: transformers marks no layers of {type(model).__name__} for it"
    raise ConfigError(key, True, valid)


def check_layers(model: PreTrainedModel, memory: DictConfig) -> None:
    """Refuse gradient checkpointing or compilation if the model or the machine cannot do it.

    Tries torch.compile on a small function. ``memory`` is the config's trainer.memory section.

    Raises:
        ConfigError: the model has no fitting layers, or nothing can be compiled on this machine.
    """
    if memory.gradient_checkpointing:
        find_layers(model, "trainer.memory.gradient_checkpointing")
    if memory.torch_compile:
        find_layers(model, "trainer.memory.torch_compile")
        try:
            torch.compile(torch.sin)(torch.ones(1, device="cuda" if torch.cuda.is_available() else "cpu"))
        except torch._dynamo.exc.TorchDynamoException as error:
            valid = (
                f"must be false, unless the machine has what torch.compile needs ({str(error).strip().splitlines()[0]})"
            )
            raise ConfigError("trainer.memory.torch_compile", True, valid) from error


@cache
def compile_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a layer's forward method once, for all layers of its class and all lengths."""
    return torch.compile(forward, dynamic=True)


@contextmanager
def use_changed_layers(model: PreTrainedModel, checkpointing: bool, torch_compile: bool) -> Iterator[None]:
    """Run the layers compiled, checkpointed, or both, inside this context.

    A checkpointed layer keeps only its input, and the backward pass computes the layer again. That pass may come after
    the context ends.

    transformers' own switch is not used: it asks for training mode, which turns dropout on in some layers, and it takes
    the cache away from a sampler with the same model. A module's own compile() is not used: it would compile that
    sampling too.

    Args:
        model: the model; its layers get their own forward methods back at the end.
        checkpointing: keep only the layers' inputs.
        torch_compile: compile the layers.
    """
    layers = find_layers(
        model, "trainer.memory.gradient_checkpointing" if checkpointing else "trainer.memory.torch_compile"
    )
    for layer in layers:
        forward = MethodType(compile_forward(type(layer).forward), layer) if torch_compile else layer.forward
        layer.forward = partial(checkpoint, forward, use_reentrant=False) if checkpointing else forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # uncovers the class's own method
