"""Runs the layers of a model compiled, or computes them again in the backward pass."""

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


def find_layers(model: PreTrainedModel, key: str) -> list[GradientCheckpointingLayer]:
    """The layers, as transformers marks them, that can be compiled, or computed again in the backward pass.

    Raises:
        ConfigError: the model has none; ``key`` is what asks for them.
    """
    if layers := [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        return layers
    valid = f"false: transformers marks no layers of {type(model).__name__} for it"
    raise ConfigError(key, True, valid)


def check_layers(model: PreTrainedModel, memory: DictConfig) -> None:
    """Refuse what the layers cannot do; torch.compile is tried. ``memory`` is the config's trainer.memory section.

    Raises:
        ConfigError: they cannot, or nothing can be compiled on this machine.
    """
    if memory.gradient_checkpointing:
        find_layers(model, "trainer.memory.gradient_checkpointing")
    if memory.torch_compile:
        find_layers(model, "trainer.memory.torch_compile")
        try:
            torch.compile(torch.sin)(torch.ones(1, device=model.device))
        except torch._dynamo.exc.TorchDynamoException as error:
            valid = f"false, or a machine with what torch.compile needs ({str(error).strip().splitlines()[0]})"
            raise ConfigError("trainer.memory.torch_compile", True, valid) from error


@cache
def compile_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's forward method compiled, for all layers of its class and all lengths."""
    return torch.compile(forward, dynamic=True)


@contextmanager
def use_changed_layers(model: PreTrainedModel, checkpointing: bool, torch_compile: bool) -> Iterator[None]:
    """Meanwhile layers run compiled, or a forward pass keeps of each its input alone; the backward pass may come later.

    transformers' own switch asks for training mode, which turns dropout on in some layers, and takes the cache away
    from whoever samples with the model; and a module's own compile() would compile that sampling too.
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
            del layer.forward  # the class's own comes to light again
