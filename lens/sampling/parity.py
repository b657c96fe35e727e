"""Whether an engine of its own says the same as the trainer: after a sync, both rate the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lens.errors import ConfigError
from lens.experience import logp_difference
from lens.prompts import Prompt
from lens.sampling.rollouts import Rollouts, Sampler

PROBE_PROMPTS, PROBE_TOKENS = 32, 32  # at most 1,024 tokens


def is_probed(syncs: int, every: int) -> bool:
    """Whether sync number ``syncs`` (from 1) is probed: the first, and every so many; 0: no other."""
    return syncs == 1 or (every > 0 and syncs % every == 0)


def probe(
    sampler: Sampler, prompts: Sequence[Prompt], recompute: Callable[[Rollouts], Tensor], *, temperature: float
) -> dict[str, float]:
    """Sample a few tokens, and compare the engine's log-probabilities with the trainer's.

    Args:
        sampler: the engine, just synced.
        prompts: the first few are used.
        recompute: the trainer's log-probabilities [N, T] of rollouts.
        temperature: of both.

    Returns:
        sampling/logp_difference_mean and sampling/logp_difference_max.

    Raises:
        ConfigError: the largest is above sampler.max_logp_difference.
    """
    rollouts = sampler.sample(
        prompts[:PROBE_PROMPTS], 1, 0, max_completion_length=PROBE_TOKENS, temperature=temperature
    )
    found = logp_difference(recompute(rollouts), rollouts.logprobs, rollouts.mask)
    largest = found["sampling/logp_difference_max"]
    if not largest <= sampler.max_logp_difference:
        valid = (
            f"at least {largest:.3g}, the largest difference between engine and trainer in the log-probability of a "
            "token; if that is not for their data types (sampler.dtype, trainer.autocast), the engine has other weights"
        )
        raise ConfigError("sampler.max_logp_difference", sampler.max_logp_difference, valid)
    return found
