"""Refuses an objective that the training loop could not call, before anything is loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lens.errors import ConfigError
from lens.objectives.inputs import InputError, call_by_name


def make_example(num_generations: int = 2, max_completion_length: int = 4) -> dict[str, Any]:
    """Return two small groups, a mixed and a negative one, with everything that an objective can ask for."""
    shape = (2, num_generations, 4)
    correct = torch.zeros(shape[:2], dtype=torch.bool)
    correct[0, 0] = True
    lengths = 2 + torch.arange(correct.numel()).view(shape[:2]) % 3
    mask = torch.arange(4) < lengths[..., None]  # [Q, G, T]
    logprobs = torch.linspace(-0.1, -0.9, mask.numel()).view(shape) * mask
    return {
        "rewards": correct.float(),
        "correct": correct,
        "valid": torch.ones_like(correct),
        "truncated": torch.zeros_like(correct),
        "confidence": (logprobs.sum(dim=-1) / lengths).exp(),
        "lengths": lengths,
        "mask": mask,
        "logprobs": logprobs,
        "entropies": torch.linspace(1, 0.2, mask.numel()).view(shape) * mask,
        "reference_logprobs": 1.1 * logprobs,
        "problem_ids": ["first", "second"],
        "step": 0,
        "max_completion_length": max_completion_length,
    }


def name_function(function: Callable[..., Any]) -> str:
    """Return the name of a function, of one that a partial calls, or of an object's class."""
    function = getattr(function, "func", function)
    return getattr(function, "__qualname__", type(function).__qualname__)


def call_example(key: str, function: Callable[..., Any], available: Mapping[str, Any]) -> Any:
    """Call a copy of a function on an example, so that neither its memory nor the random numbers change.

    Raises:
        ConfigError: it asks for something else, or an option cannot work. ``key`` is where the config names it.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            return call_by_name(copy.deepcopy(function), available)
        except InputError as error:
            raise ConfigError(f"{key}._target_", name_function(function), f"cannot be called: it {error}") from error
        except ValueError as error:
            raise ConfigError(key, name_function(function), str(error)) from error


def check_objective(objective: Callable[..., Tensor], num_generations: int = 2) -> bool:
    """Call the objective on two groups of so many answers, as the training loop will.

    Returns:
        Whether its advantages are per token, [Q, G, T], rather than per answer, [Q, G].

    Raises:
        ConfigError: it asks for something unknown, an option cannot work, or it returns another shape or no floats.
    """
    example = make_example(num_generations)
    advantages = call_example("objective", objective, example)
    shapes = [list(example[name].shape) for name in ("correct", "mask")]
    if not isinstance(advantages, Tensor) or list(advantages.shape) not in shapes or not advantages.is_floating_point():
        returned = f"{advantages.dtype} {list(advantages.shape)}" if isinstance(advantages, Tensor) else advantages
        valid = f"must return floating advantages [Q, G] or [Q, G, T], not {returned}"
        raise ConfigError("objective._target_", name_function(objective), valid)
    return advantages.dim() == 3


def check_shaping(shaping: Callable[..., Tensor], max_completion_length: int) -> None:
    """Call a reward shaping on an example, as the training loop will.

    Raises:
        ConfigError: it asks for something unknown, an option cannot work, or it returns no finite rewards [Q, G].
    """
    example = make_example(max_completion_length=max_completion_length)
    rewards = call_example("reward_shaping", shaping, example)
    if not isinstance(rewards, Tensor) or rewards.shape != example["rewards"].shape or not rewards.isfinite().all():
        raise ConfigError("reward_shaping._target_", name_function(shaping), "must return finite rewards [Q, G]")
