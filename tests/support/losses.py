"""The loss and the forward pass of tests that are about something else."""

from __future__ import annotations

from typing import Any

from lens.models.logprobs import ForwardPass
from lens.training.update import Loss


def plain_loss(**changes: Any) -> Loss:
    """The clipped surrogate and nothing besides, but for what is changed."""
    choices = {
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "dual_clip": None,
        "loss_agg_mode": "seq-mean-token-mean",
        "beta": 0.0,
        "entropy_coef": 0.0,
        "max_completion_length": 16,
    }
    return Loss(**(choices | changes))


def plain_pass(**changes: Any) -> ForwardPass:
    """Everything at once, in the type of the weights, but for what is changed."""
    choices = {"temperature": 1.0, "max_tokens_per_microbatch": 2000, "logits_chunk_size": 256}
    return ForwardPass(**(choices | changes))
