"""Computes the gradient of one optimizer batch, micro-batch by micro-batch. Their size does not change the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel

from lens.distributed.collectives import gather_tensor, local_part, sum_over_processes, world_size
from lens.losses.aggregation import LossAggMode, token_weights
from lens.losses.kl import kl_to_reference
from lens.losses.surrogate import Surrogate, call_surrogate
from lens.models.head import widened_dtype
from lens.models.logprobs import ForwardPass
from lens.models.packing import measure_balance, split_into_microbatches
from lens.objectives.groups import group_kinds
from lens.training.experience import Experience


@dataclass(frozen=True)
class Loss:
    """The surrogate loss, its settings, which configs/loss/base.yaml explains, and its gradient.

    ``surrogate`` is a loss of lens/losses with its options.
    """

    surrogate: Callable[..., Surrogate]
    loss_agg_mode: LossAggMode
    beta: float
    entropy_coef: float
    max_completion_length: int

    @classmethod
    def build(cls, config: DictConfig) -> Loss:
        """Make it from the sections loss and trainer.rollouts of a composed config."""
        known = {**config.loss, **config.trainer.rollouts}
        settings = {f.name: known[f.name] for f in fields(cls) if f.name != "surrogate"}
        own = {key: value for key, value in config.loss.items() if key not in settings}
        return cls(surrogate=instantiate(own), **settings)

    def weights(self, experience: Experience) -> Tensor:
        """Return the weight of each completion's tokens in the loss of the whole optimizer batch, float64 [Q*G].

        A completion that is not valid has none, nor has one whose advantage is NaN, which is how an objective leaves an
        answer out of the batch.
        """
        left_out = token_advantages(experience).isnan().any(dim=1)  # [Q*G]
        lengths = experience.rollouts.lengths * (experience.valid.flatten() & ~left_out)
        return token_weights(lengths, self.loss_agg_mode, max_completion_length=self.max_completion_length)

    def teaches(self, experience: Experience) -> Tensor:
        """Return which completions have a gradient, bool [Q*G].

        They have a weight, and a token whose advantage is not 0. A KL or entropy term makes the weight enough.
        """
        every = self.beta > 0 or self.entropy_coef > 0
        return (self.weights(experience) > 0) & ((token_advantages(experience) != 0).any(dim=1) | every)

    def accumulate(
        self, model: PreTrainedModel, experience: Experience, forward_pass: ForwardPass, rows: Tensor, weights: Tensor
    ) -> Tally:
        """Add the gradient of some completions' part of the loss to the parameters' .grad.

        Args:
            model: the policy.
            experience: the whole optimizer batch.
            forward_pass: how the policy's log-probabilities are computed.
            rows: int64, the rows of the completions to take.
            weights: float64 [Q*G], from `weights`.

        Returns:
            Sums over the trained tokens, over all processes.
        """
        advantages = token_advantages(experience)
        r, tally = experience.rollouts, Tally()
        rated = forward_pass.rate_in_turns(model, r, rows.tolist(), entropies=self.entropy_coef > 0)
        for part, (logprobs, entropies), counts in rated:  # [n] each, for the part's n tokens
            lengths, mask = r.lengths[part], r.mask[part]  # [completions], [completions, T]
            advantage = advantages[part][mask].to(logprobs)  # [n]
            weight = weights[part].repeat_interleave(lengths).to(logprobs)  # [n]
            if experience.importance is not None:
                weight = weight * experience.importance[part][mask].to(logprobs)  # [n]
            known = experience.old_logprobs
            old = logprobs.detach() if known is None else known[part][mask].to(logprobs)  # [n]
            losses, clipped = call_surrogate(self.surrogate, logprobs, old, advantage, lengths)  # [n] each
            if self.beta > 0:
                kl = kl_to_reference(logprobs, experience.reference_logprobs[part][mask].to(logprobs))  # [n]
                losses = losses + self.beta * kl
                tally.kl += counts * kl.detach().double().sum().item()
            if self.entropy_coef > 0:
                losses = losses - self.entropy_coef * entropies
            loss = (losses * weight).sum() * counts  # a repeated micro-batch, which does not count, adds zero
            loss.backward()
            if not counts:
                continue

            tally.loss += loss.item()
            tally.tokens += len(losses)
            tally.completions += len(part)
            tally.clipped_low += int((clipped & (advantage < 0)).sum())
            tally.clipped_high += int((clipped & (advantage > 0)).sum())
        return tally.over_processes()


def token_advantages(experience: Experience) -> Tensor:
    """Return the advantage of each token, float32 [Q*G, T]; 0 beyond a completion's end."""
    mask = experience.rollouts.mask
    return experience.advantages.reshape(len(mask), -1).expand(mask.shape).masked_fill(~mask, 0)


@dataclass
class Tally:
    """Sums over the trained tokens."""

    loss: float = 0.0
    kl: float = 0.0
    tokens: int = 0
    completions: int = 0
    clipped_low: int = 0
    clipped_high: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def over_processes(self) -> Tally:
        """Return the sum over all processes."""
        sums = sum_over_processes(
            torch.tensor([getattr(self, name) for name in self.__dataclass_fields__], dtype=torch.float64)
        )
        return Tally(*(type(f.default)(value) for f, value in zip(fields(self), sums.tolist(), strict=True)))

    def metrics(self) -> dict[str, float]:
        """Return means over the trained tokens, and how many tokens and completions there were."""
        tokens = max(self.tokens, 1)
        return {
            "loss": self.loss,
            "kl": self.kl / tokens,
            "clip_ratio/low_mean": self.clipped_low / tokens,
            "clip_ratio/high_mean": self.clipped_high / tokens,
            "completions/trained": self.completions,
            "tokens/trained": self.tokens,
        }


def compute_gradient(
    model: PreTrainedModel,
    experience: Experience,
    loss: Loss,
    forward_pass: ForwardPass,
    *,
    compare_groups: bool = False,
) -> dict[str, float]:
    """Write the gradient of the batch's loss into the parameters' .grad, and return metrics.

    Completions whose advantage is exactly 0 cost nothing while beta and entropy_coef are 0.

    Args:
        model: the policy. Its gradients are overwritten, and are zero (not None) if nothing teaches. They are in
            float32 or wider, so that the sum over many micro-batches loses nothing.
        experience: the whole optimizer batch.
        loss: the surrogate.
        forward_pass: how the policy's log-probabilities are computed.
        compare_groups: compute the gradients of negative groups and of all others separately, and also return
            groups/grad_norm_share_negative and groups/grad_cosine.

    Several processes also return tokens_per_process/largest_over_mean; see `measure_balance`.
    """
    _zero_gradients(model)
    weights, teaches = loss.weights(experience), loss.teaches(experience)
    generations = experience.rollouts.num_generations
    negative = group_kinds(experience.correct, experience.valid).negative.flatten().repeat_interleave(generations)

    def accumulate(which: Tensor) -> Tally:
        return loss.accumulate(model, experience, forward_pass, which.nonzero().squeeze(1), weights)

    metrics = {}
    if compare_groups:
        tally = accumulate(teaches & negative)
        of_negative = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        tally += accumulate(teaches & ~negative)
        of_others = [p.grad - g for p, g in zip(_parameters_with_gradient(model), of_negative, strict=True)]
        metrics = compare_gradients(of_negative, of_others)
    else:
        tally = accumulate(teaches)
    if world_size() > 1:
        rows, budget = teaches.nonzero().squeeze(1).tolist(), forward_pass.max_tokens_per_microbatch
        balance = measure_balance(model, experience.rollouts, rows, budget, world_size())
        metrics["tokens_per_process/largest_over_mean"] = balance
    return {**tally.metrics(), **metrics, "empty_step": float(tally.completions == 0)}


def find_non_finite(model: PreTrainedModel, experience: Experience, loss: Loss, forward_pass: ForwardPass) -> str:
    """Return a sentence that names the first micro-batch whose loss or gradient is not finite.

    Computes each micro-batch again by itself.

    Args:
        model: the policy; its gradients are overwritten.
        experience, loss, forward_pass: what `compute_gradient` was given.
    """
    rows, weights = loss.teaches(experience).nonzero().squeeze(1), loss.weights(experience)
    batches = split_into_microbatches(model, experience.rollouts, rows.tolist(), forward_pass.max_tokens_per_microbatch)
    parts = [[row for pack in packs for row in pack] for packs in batches]
    for number, part in enumerate(parts, start=1):
        _zero_gradients(model)
        value = loss.accumulate(model, experience, forward_pass, torch.as_tensor(part), weights).loss
        norm = gather_tensor(torch.nn.utils.get_total_norm([p.grad for p in _parameters_with_gradient(model)])).item()
        if not (math.isfinite(value) and math.isfinite(norm)):
            generations = experience.rollouts.num_generations
            of = sorted({experience.rollouts.prompts[row // generations].problem_id for row in part})
            answers = f"{len(part)} answers to {', '.join(of)}"
            return f"micro-batch {number} of {len(parts)} ({answers}) has loss {value:g} and gradient norm {norm:g}"
    return f"the sum of {len(parts)} micro-batches is not finite, though each of them is"


def _zero_gradients(model: PreTrainedModel) -> None:
    """Set the gradients of the trained parameters to zero, in float32 or wider whatever the parameter's data type."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        dtype = widened_dtype(parameter)
        if parameter.grad is None or parameter.grad.dtype != dtype:
            parameter.grad = None  # torch wants it so before another data type
            parameter.grad_dtype = dtype
            parameter.grad = torch.zeros_like(parameter, dtype=dtype)
        parameter.grad.zero_()


def _parameters_with_gradient(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.grad is not None]


def compare_gradients(of_negative: list[Tensor], of_others: list[Tensor]) -> dict[str, float]:
    """Return |g_neg| / (|g_neg| + |g_other|), and the cosine between the two gradients.

    Each list holds one gradient per parameter, whole or as this process's shard. The share is 0 if g_neg is 0, and the
    cosine is 0 if either is.
    """
    a = torch.cat([local_part(g).flatten() for g in of_negative]).double()
    b = torch.cat([local_part(g).flatten() for g in of_others]).double()
    squared_a, squared_b, product = sum_over_processes(torch.stack([a @ a, b @ b, a @ b])).tolist()
    norm_a, norm_b = math.sqrt(squared_a), math.sqrt(squared_b)
    return {
        "groups/grad_norm_share_negative": norm_a / (norm_a + norm_b) if norm_a > 0 else 0.0,
        "groups/grad_cosine": product / (norm_a * norm_b) if norm_a > 0 and norm_b > 0 else 0.0,
    }
