"""Computes log-probabilities and entropies of sampled tokens, in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lens.distributed.collectives import sum_over_processes, take_turns
from lens.errors import ConfigError
from lens.models.head import rate_tokens
from lens.models.layers import use_changed_layers
from lens.models.loading import DTYPES
from lens.models.packing import is_flat, lay_out, shares_prompts, split_into_microbatches
from lens.models.sharding import call_with_weights
from lens.sampling.rollouts import Rollouts


class TokenValues(NamedTuple):
    """Values of n sampled tokens: [n] each, completion after completion, in the order they were asked for."""

    logprobs: Tensor
    entropies: Tensor | None


def rate_completions(
    model: PreTrainedModel,
    rollouts: Rollouts,
    packs: Sequence[Sequence[int]],
    *,
    temperature: float,
    logits_chunk_size: int,
    autocast: str | None = None,
    entropies: bool = True,
    gradient_checkpointing: bool = False,
    torch_compile: bool = False,
) -> TokenValues:
    """Return the log-probability and entropy of every sampled token of some completions.

    They carry gradients unless gradients are off. The language-model head sees only completion tokens, a chunk at a
    time, and the backward pass computes it again. So the largest buffer is chunk x vocabulary, however long prompts and
    completions are.

    Args:
        model: a causal language model whose head is a plain linear map of its last hidden state.
        rollouts: the completions.
        packs: rows of the completions to take. Those of one list belong to one question and may share the pass over its
            prompt.
        temperature: the sampling temperature; it divides the logits here too.
        logits_chunk_size: tokens whose logits are in memory at once.
        autocast: data type of the matrix products below the head ("bfloat16"). None: that of the weights, which the
            head always uses.
        entropies: compute entropies too.
        gradient_checkpointing: keep only the input of each layer, and compute the layer again in the backward pass.
        torch_compile: compile the layers with torch.compile.

    Returns:
        `TokenValues` in float32 or wider.

    Raises:
        ConfigError: the model does not pass on to its attention which completions share a prompt.
    """
    if not shares_prompts(model):
        packs = [[row] for pack in packs for row in pack]
    layout = lay_out(rollouts, packs, flat=is_flat(model), sharing=shares_prompts(model)).to(model.device)
    checkpointing = gradient_checkpointing and torch.is_grad_enabled()
    changed = checkpointing or torch_compile
    layers = use_changed_layers(model, checkpointing, torch_compile) if changed else nullcontext()

    def values(model: PreTrainedModel) -> tuple[Tensor, ...]:
        with torch.autocast(model.device.type, DTYPES[autocast or "bfloat16"], enabled=autocast is not None), layers:
            hidden = model.base_model(
                input_ids=layout.ids, position_ids=layout.positions, use_cache=False, **layout.for_attention()
            ).last_hidden_state[layout.predicting]  # [n, H]
        if layout.sharing is not None and not layout.sharing.is_used:
            raise ConfigError(
                "model.attention",
                "sdpa",
                f"eager: {type(model).__name__} does not tell its attention which completions share a prompt",
            )
        head = model.get_output_embeddings()
        return rate_tokens(
            head,
            hidden.to(head.weight.dtype),
            layout.targets,
            temperature=temperature,
            chunk_size=logits_chunk_size,
            entropies=entropies,
        )

    return TokenValues(*call_with_weights(model, values))


@torch.no_grad()
def rate_rollouts(
    model: PreTrainedModel,
    rollouts: Rollouts,
    *,
    temperature: float,
    logits_chunk_size: int,
    max_tokens: int,
    autocast: str | None = None,
    torch_compile: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the model's own log-probabilities and entropies of all sampled tokens, without gradients.

    Args:
        model, temperature, logits_chunk_size, autocast, torch_compile: see `rate_completions`.
        rollouts: Q*G completions of at most T tokens.
        max_tokens: tokens of one micro-batch.

    Returns:
        [Q*G, T] each; 0 beyond a completion's length.
    """
    logprobs = torch.zeros_like(rollouts.logprobs)
    entropies = torch.zeros_like(rollouts.logprobs)
    mask = rollouts.mask
    for packs, counts in take_turns(
        list(split_into_microbatches(model, rollouts, range(len(rollouts.lengths)), max_tokens))
    ):
        rows = [row for pack in packs for row in pack]
        values = rate_completions(
            model,
            rollouts,
            packs,
            temperature=temperature,
            logits_chunk_size=logits_chunk_size,
            autocast=autocast,
            torch_compile=torch_compile,
        )
        for whole, part in zip((logprobs, entropies), values, strict=True):
            block = torch.zeros_like(whole[rows])
            block[mask[rows]] = part.to(block)
            whole[rows] = block * counts
    return sum_over_processes(logprobs), sum_over_processes(entropies)
