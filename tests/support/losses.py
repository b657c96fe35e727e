"""The loss of tests that are about something else."""

from __future__ import annotations

from typing import Any

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
        "temperature": 1.0,
        "max_completion_length": 16,
        "max_tokens_per_microbatch": 2000,
        "logits_chunk_size": 256,
    }
    return Loss(**(choices | changes))
