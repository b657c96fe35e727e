"""Calls what a config names on a small example, so that a function that cannot work is refused at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch

from lens.errors import ConfigError
from lens.losses.surrogate import INPUTS, Surrogate, call_surrogate, find_inputs


def check_loss(loss: Callable[..., Surrogate], token_level: bool) -> None:
    """Call the loss on two small answers, as an update will.

    Args:
        loss: as `lens.losses.surrogate` describes.
        token_level: whether the objective's advantages differ from token to token.

    Raises:
        ConfigError: it asks for other inputs or does not take its options, it takes one advantage for each answer but
            the objective has one for each token, or it returns something else than a `Surrogate`.
    """
    function, options = getattr(loss, "func", loss), getattr(loss, "keywords", {})
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        wanted = find_inputs(function)
        inspect.signature(function).bind(**options, **dict.fromkeys(wanted))
    except (TypeError, ValueError) as error:
        valid = f"must be a function of keyword arguments out of {', '.join(INPUTS)}, and of options: {error}"
        raise ConfigError("loss._target_", name, valid) from error
    if token_level and "sequence_advantages" in wanted:
        valid = "must be a loss that takes token-level advantages, as the objective's are: this one takes each answer's"
        raise ConfigError("loss._target_", name, valid)
    lengths, old = torch.tensor([2, 3]), torch.tensor([-0.5, -1.0, -2.0, -0.1, -3.0])
    logprobs = (0.9 * old).requires_grad_()
    returned = call_surrogate(loss, logprobs, old, torch.tensor([1.0, 1.0, -0.5, -0.5, -0.5]), lengths)
    if not is_surrogate(returned, logprobs):
        valid = "must return Surrogate(losses, clipped): floats [n] with a gradient, and bools [n]"
        raise ConfigError("loss._target_", name, valid)


def is_surrogate(returned: object, logprobs: torch.Tensor) -> bool:
    """Return whether a loss of these log-probabilities returned what an update can use."""
    if not (isinstance(returned, tuple) and len(returned) == 2 and all(map(torch.is_tensor, returned))):
        return False
    losses, clipped = returned
    right_types = losses.dtype == logprobs.dtype and losses.requires_grad and clipped.dtype == torch.bool
    return right_types and losses.shape == clipped.shape == logprobs.shape
