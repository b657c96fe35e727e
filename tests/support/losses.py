"""The loss and the forward pass of tests that are about something else."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

from lens.losses import ppo_clip_loss
from lens.models.logprobs import ForwardPass
from lens.training.update import Loss


def plain_loss(**changes: Any) -> Loss:
    """The clipped surrogate and nothing besides, but for what is changed: fields of a loss, or options of its clip."""
    choices = {"loss_agg_mode": "seq-mean-token-mean", "beta": 0.0, "entropy_coef": 0.0, "max_completion_length": 16}
    clip = {"epsilon_low": 0.2, "epsilon_high": 0.2, "dual_clip": None}
    names = {f.name for f in fields(Loss)}
    choices |= {name: value for name, value in changes.items() if name in names}
    clip |= {name: value for name, value in changes.items() if name not in names}
    return Loss(**({"surrogate": partial(ppo_clip_loss, **clip)} | choices))


def choices_of(loss: Loss) -> dict[str, Any]:
    """The arguments of `plain_loss` that make this loss again: plain values, which a file can hold."""
    return {name: value for name, value in vars(loss).items() if name != "surrogate"} | loss.surrogate.keywords


def plain_pass(**changes: Any) -> ForwardPass:
    """Everything at once, in the type of the weights, but for what is changed."""
    choices = {"temperature": 1.0, "max_tokens_per_microbatch": 2000, "logits_chunk_size": 256}
    return ForwardPass(**(choices | changes))
