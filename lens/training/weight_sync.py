"""Gives the rollout engine the policy's current weights, and checks that it has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from lens.errors import ConfigError
from lens.models.logprobs import ForwardPass
from lens.models.probe import TOLERANCES, coarsest_dtype
from lens.models.sharding import gather_named_weights
from lens.problems.prompts import Prompt
from lens.sampling.rollouts import Sampler
from lens.training.group_metrics import measure_logp_difference

ENGINE_PROBE = 32, 1, 32  # prompts, answers to each, and tokens of an answer
POLICY_PROBE = 4, 2, 8  # where the engine is the policy


@dataclass
class WeightSync:
    """Hands out the engine, and syncs its weights first if the policy has changed.

    After the first sync, and then after every ``sampler.parity_every`` syncs, a probe compares the log-probabilities
    that engine and trainer give the same tokens. The engine of a resumed run is probed too, but that probe only checks:
    the run's metrics stay those of a run that never stopped.

    Attributes:
        sampler: the engine.
        model, forward_pass: the policy, and how its log-probabilities are computed.
        prompts: the training prompts; probes use the first few.
        parity: metrics of the last probe: sampling/logp_difference_mean and sampling/logp_difference_max.
    """

    sampler: Sampler
    model: PreTrainedModel
    prompts: Sequence[Prompt]
    forward_pass: ForwardPass
    parity: dict[str, float] = field(default_factory=dict)
    _synced_at: int | None = None  # the step whose weights this engine has
    _counted_at: int | None = None  # the step of the run's last sync
    _syncs: int = 0  # of the run

    def sampler_at(self, step: int) -> Sampler:
        """Return the engine with the policy's weights after ``step`` updates.

        Raises:
            ConfigError: a probe found a difference above sampler.max_logp_difference.
        """
        if self._synced_at != step:
            is_first, is_new = self._synced_at is None, self._counted_at != step
            self.sampler.sync(gather_named_weights(self.model))
            self._synced_at = self._counted_at = step
            self._syncs += is_new
            every = self.sampler.parity_every
            due = is_new and (self._syncs == 1 or (every > 0 and self._syncs % every == 0))
            if is_first or due:
                found = probe_engine(self.sampler, self.model, self.prompts, self.forward_pass)
                self.parity = found if due else self.parity
        return self.sampler

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores, so that a resumed run probes and logs as one that never stopped."""
        return {"counted_at": self._counted_at, "syncs": self._syncs, "parity": self.parity}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; the engine is synced and probed at its next use."""
        self._counted_at, self._syncs, self.parity = state["counted_at"], state["syncs"], state["parity"]


def probe_engine(
    sampler: Sampler, model: PreTrainedModel, prompts: Sequence[Prompt], forward_pass: ForwardPass
) -> dict[str, float]:
    """Sample a few tokens, and compare the engine's log-probabilities with the trainer's.

    Single tokens may differ much in bfloat16. Their mean may not: a wrong head or old weights shift most tokens.

    Returns:
        sampling/logp_difference_mean and sampling/logp_difference_max; nothing if the engine is the policy itself.

    Raises:
        ConfigError: the largest difference is above sampler.max_logp_difference, or the mean one above
            sampler.max_mean_logp_difference. For the policy itself the limits are those of `lens.models.probe`.
    """
    is_policy = sampler.max_logp_difference is None
    count, answers, tokens = POLICY_PROBE if is_policy else ENGINE_PROBE
    rollouts = sampler.sample(
        prompts[:count], answers, 0, max_completion_length=tokens, temperature=forward_pass.temperature
    )
    logprobs, _ = forward_pass.rate_rollouts(model, rollouts)
    found = measure_logp_difference(logprobs, rollouts.logprobs, rollouts.mask)
    largest, mean = found["sampling/logp_difference_max"], found["sampling/logp_difference_mean"]
    if is_policy:
        allowed = TOLERANCES[coarsest_dtype(model, forward_pass.autocast or "float32")]  # rollouts are in float32
        if not (largest <= allowed.largest and mean <= allowed.mean):
            valid = (
                f"must be vllm: token by token, {type(model).__name__} gives other log-probabilities than on whole "
                f"answers, by up to {largest:.3g} (mean {mean:.3g}); rounding explains {allowed.largest:g} (mean "
                f"{allowed.mean:g})"
            )
            raise ConfigError("sampler", "transformers", valid)
        return {}
    for name, value, what in (
        ("max_logp_difference", largest, "largest"),
        ("max_mean_logp_difference", mean, "mean"),
    ):
        if not value <= getattr(sampler, name):
            valid = (
                f"must be at least {value:.3g}, the {what} difference between engine and trainer in the "
                "log-probability of a token; if their data types (sampler.dtype, trainer.memory.autocast) do not "
                "explain it, the engine has other weights or computes other logits"
            )
            raise ConfigError(f"sampler.{name}", getattr(sampler, name), valid)
    return found
