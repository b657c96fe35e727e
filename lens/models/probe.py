"""Compares the log-probabilities that training computes with those of the model's own forward pass.

Training runs a model in a way of its own: completions share prompts, sequences stand in one row, and the head sees a
few tokens at a time. A model that does more than this allows for would train on wrong numbers without a sign. So two
completions of one prompt are computed both ways, with a gradient, before the first update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lens.distributed.collectives import sum_over_processes
from lens.errors import ConfigError
from lens.models.logprobs import ForwardPass
from lens.problems.prompts import Prompt
from lens.sampling.rollouts import Rollouts

COMPLETION_TOKENS = 8, 5  # of the two completions
SAMPLED_GRADIENT = 1024  # numbers compared in each weight's gradient


class Difference(NamedTuple):
    """How far the two ways of computing are apart.

    Attributes:
        largest, mean: of the absolute differences between the log-probabilities of a token.
        gradient: norm of the difference of the gradients, over the norm of the model's own.
    """

    largest: float
    mean: float
    gradient: float


# The most that rounding may explain, for the coarsest data type in use. float32 differs by about 1e-5.
TOLERANCES = {
    "float64": Difference(1e-6, 1e-7, 1e-6),
    "float32": Difference(5e-3, 1e-3, 5e-3),
    "bfloat16": Difference(2.0, 0.25, 0.25),
}


def is_within(found: Difference, allowed: Difference) -> bool:
    """Return whether each number is at most the allowed one. NaN is not."""
    return all(value <= limit for value, limit in zip(found, allowed, strict=True))


def coarsest_dtype(model: PreTrainedModel, autocast: str | None) -> str:
    """Return the name of the coarsest data type that the model computes with, a key of TOLERANCES."""
    weights = str(model.dtype).removeprefix("torch.")
    return max(weights, autocast or weights, key=list(TOLERANCES).index)


def check_forward_pass(model: PreTrainedModel, forward_pass: ForwardPass, rollouts: Rollouts) -> None:
    """Compare both ways of computing on two completions of one prompt; see `make_probe`.

    They are compared in the data type of the weights, where little is left to rounding, and then with autocast. Where
    weights are gathered in the narrower type, both ways compute with autocast alone.

    Raises:
        ConfigError: they differ by more than TOLERANCES allow.
    """
    gathered = getattr(model, "gathered", None)
    autocasts = dict.fromkeys((None, forward_pass.autocast) if gathered is None else (forward_pass.autocast,))
    passes = [replace(forward_pass, autocast=autocast) for autocast in autocasts]
    for autocast, found in zip(autocasts, compare_forward_passes(model, passes, rollouts), strict=True):
        if not is_within(found, TOLERANCES[coarsest_dtype(model, autocast)]):
            raise explain_difference(model, found, autocast)


def explain_difference(model: PreTrainedModel, found: Difference, autocast: str | None) -> ConfigError:
    """Return an error that says what to set where the two ways differ too much."""
    dtype, attention = coarsest_dtype(model, autocast), model.config._attn_implementation
    if autocast is not None:
        key, value, valid = "trainer.memory.autocast", autocast, "must be null"
    elif dtype == "bfloat16":
        key, value, valid = "model.dtype", dtype, "must be float32"
    elif attention != "eager":
        key, value, valid = "model.attention", attention.removesuffix("_shared_prompts"), "must be eager"
    else:
        key, value, valid = "model.name_or_path", model.name_or_path, "must be another model"
    allowed = TOLERANCES[dtype]
    numbers = (
        f"training and the own forward pass of {type(model).__name__} differ by up to {found.largest:.3g} (mean "
        f"{found.mean:.3g}) in the log-probability of a token, and by {found.gradient:.3g} of the gradient; {dtype} "
        f"explains {allowed.largest:g} (mean {allowed.mean:g}), and {allowed.gradient:g}"
    )
    return ConfigError(key, value, f"{valid}: {numbers}")


def make_probe(prompts: Sequence[Prompt]) -> Rollouts:
    """Make two completions of the shortest prompt, of tokens of the longest: the model has seen text like that."""
    shortest = min(prompts, key=lambda prompt: len(prompt.token_ids))
    source = list(max(prompts, key=lambda prompt: len(prompt.token_ids)).token_ids)
    source *= -(-sum(COMPLETION_TOKENS) // len(source))
    lengths = torch.tensor(COMPLETION_TOKENS)
    ids = torch.zeros(len(lengths), max(COMPLETION_TOKENS), dtype=torch.long)
    for row, length in enumerate(COMPLETION_TOKENS):
        start = sum(COMPLETION_TOKENS[:row])
        ids[row, :length] = torch.tensor(source[start : start + length])
    return Rollouts([shortest], len(lengths), ids, torch.zeros(ids.shape), lengths, ["length"] * 2, [""] * 2)


def compare_forward_passes(
    model: PreTrainedModel, passes: Sequence[ForwardPass], rollouts: Rollouts
) -> list[Difference]:
    """Compare some ways of computing with the model's own on two completions of one prompt.

    Args:
        model: the model. The gradients of all its weights are None afterwards.
        passes: how training computes; all at one temperature.
        rollouts: from `make_probe`.

    Returns:
        The `Difference` of each pass.
    """

    def differentiate(logprobs: Tensor) -> tuple[Tensor, list[Tensor]]:
        signs = torch.tensor([1.0, -1.0], device=logprobs.device).repeat_interleave(
            rollouts.lengths.to(logprobs.device)
        )
        (logprobs * signs).sum().backward()
        sampled = list(sample_gradients(model))
        model.zero_grad()
        return logprobs.detach().double(), sampled

    (temperature,) = {each.temperature for each in passes}
    model.zero_grad()
    gathered = getattr(model, "gathered", None)
    with torch.autocast(model.device.type, gathered, enabled=gathered is not None):
        plainly = rate_plainly(model, rollouts, temperature)
    theirs, their_gradients = differentiate(plainly)
    found = []
    for each in passes:
        ours, our_gradients = differentiate(each.rate_packs(model, rollouts, [[0, 1]], entropies=False).logprobs)
        apart = (ours - theirs).abs()
        squares = torch.zeros(2, dtype=torch.float64)  # of the difference and of the model's own gradient
        for one, other in zip(our_gradients, their_gradients, strict=True):
            squares += torch.stack([(one - other).square().sum(), other.square().sum()]).cpu()
        difference, norm = sum_over_processes(squares).sqrt().tolist()
        found.append(Difference(apart.max().item(), apart.mean().item(), difference / norm if norm else difference))
    return found


def rate_plainly(model: PreTrainedModel, rollouts: Rollouts, temperature: float) -> Tensor:
    """Return the log-probabilities of all completions' tokens, by the model's own forward pass on a padded batch.

    Returns:
        [n], completion after completion, in float32 or wider, with gradients.
    """
    prompts = [list(prompt.token_ids) for prompt in rollouts.prompts for _ in range(rollouts.num_generations)]
    starts, ends = [len(prompt) for prompt in prompts], []
    rows = []
    for prompt, completion, length in zip(prompts, rollouts.completion_ids, rollouts.lengths.tolist(), strict=True):
        rows.append(torch.tensor(prompt + completion[:length].tolist()))
        ends.append(len(rows[-1]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(ends)[:, None]).long().to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logprobs = logits.log_softmax(dim=-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)  # [N, L-1]
    return torch.cat([row[start - 1 : end - 1] for row, start, end in zip(logprobs, starts, ends, strict=True)])


def sample_gradients(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield some numbers of each trained weight's gradient, of this process's shard: float64, at most about 2,000."""
    for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        local = getattr(gradient, "_local_tensor", gradient).flatten()
        yield local[:: max(1, len(local) // SAMPLED_GRADIENT)].double()
