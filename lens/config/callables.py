"""Calls what a config names on a small example, so that a function that cannot work is refused at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lens.errors import ConfigError
from lens.losses.surrogate import INPUTS, Surrogate, call_surrogate
from lens.objectives.inputs import InputError, call_by_name, find_inputs


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


def check_loss(loss: Callable[..., Surrogate], token_level: bool) -> None:
    """Call the loss on two small answers, as an update will.

    Args:
        loss: as `lens.losses.surrogate` describes.
        token_level: whether the objective's advantages differ from token to token.

    Raises:
        ConfigError: it asks for other inputs or does not take its options, it takes one advantage for each answer but
            the objective has one for each token, or it returns something else than a `Surrogate`.
    """
    name = name_function(loss)
    try:
        wanted = find_inputs(loss, INPUTS)
    except InputError as error:
        raise ConfigError("loss._target_", name, f"cannot be called: it {error}") from error
    if token_level and "sequence_advantages" in wanted:
        valid = "must be a loss that takes token-level advantages, as the objective's are: this one takes each answer's"
        raise ConfigError("loss._target_", name, valid)
    lengths, old = torch.tensor([2, 3]), torch.tensor([-0.5, -1.0, -2.0, -0.1, -3.0])
    logprobs = (0.9 * old).requires_grad_()
    returned = call_surrogate(loss, logprobs, old, torch.tensor([1.0, 1.0, -0.5, -0.5, -0.5]), lengths)
    if not is_surrogate(returned, logprobs):
        valid = "must return Surrogate(losses, clipped): floats [n] with a gradient, and bools [n]"
        raise ConfigError("loss._target_", name, valid)


def is_surrogate(returned: object, logprobs: Tensor) -> bool:
    """Return whether a loss of these log-probabilities returned what an update can use."""
    if not (isinstance(returned, tuple) and len(returned) == 2 and all(map(torch.is_tensor, returned))):
        return False
    losses, clipped = returned
    right_types = losses.dtype == logprobs.dtype and losses.requires_grad and clipped.dtype == torch.bool
    return right_types and losses.shape == clipped.shape == logprobs.shape
