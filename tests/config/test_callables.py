"""A loss that cannot work is refused with one line, before anything is made."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lens.config.callables import check_loss
from lens.errors import ConfigError
from lens.losses import Surrogate, gmpo_loss, gspo_loss, ppo_clip_loss, topr_loss
from lens.losses.surrogate import INPUTS


def unknown_input(*, logprobs, rewards):
    return Surrogate(logprobs, logprobs > 0)


def positional_input(logprobs, /):
    return Surrogate(logprobs, logprobs > 0)


def losses_alone(*, logprobs):
    return -logprobs


def a_mean(*, logprobs, advantages):
    return Surrogate(-(logprobs * advantages).mean(), (logprobs > 0).any())


def no_gradient(*, logprobs, advantages):
    return Surrogate(-logprobs.detach() * advantages, logprobs > 0)


def numbers_for_clipped(*, logprobs, advantages):
    return Surrogate(-logprobs * advantages, torch.zeros_like(logprobs))


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (unknown_input, f"asks for rewards, which must have a default or be one of {', '.join(INPUTS)}"),
        (positional_input, "asks for logprobs, which"),
        (partial(ppo_clip_loss, ratio_max=5.0), "got an unexpected keyword argument 'ratio_max'"),
        (losses_alone, "must return Surrogate"),
        (a_mean, "must return Surrogate"),
        (no_gradient, "floats .n. with a gradient"),
        (numbers_for_clipped, "and bools .n."),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_loss_that_cannot_work_is_refused(loss, says):
    with pytest.raises(ConfigError, match=says) as error:
        check_loss(loss, token_level=False)
    assert error.value.key == "loss._target_"
    assert getattr(loss, "func", loss).__name__ in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loss_of_whole_answers_takes_no_token_level_advantages():
    for loss in (partial(gmpo_loss, log_epsilon_low=0.2), topr_loss):
        check_loss(loss, token_level=False)
        with pytest.raises(ConfigError, match="takes token-level advantages, as the objective's are") as error:
            check_loss(loss, token_level=True)
        assert error.value.key == "loss._target_"
    check_loss(gspo_loss, token_level=True)


def test_an_object_may_be_a_loss():
    class Own:
        def __call__(self, *, logprobs, advantages):
            return Surrogate(-logprobs * advantages, logprobs > 0)

    check_loss(Own(), token_level=True)
