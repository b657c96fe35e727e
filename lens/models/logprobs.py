"""Log-probabilities and entropies of sampled tokens, in little memory."""

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
    """Values of sampled tokens, flat: [n], completion after completion in the order asked for."""

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
    """Log-probability and entropy of every sampled token of some completions, with gradients where they are on.

    The language-model head sees completion tokens alone, a chunk at a time, and is computed again in the backward
    pass: the largest buffer is chunk x vocabulary, whatever the length of prompts and completions.

    Args:
        model: a causal language model whose head is a plain linear map of its last hidden state.
        rollouts: the completions.
        packs: which of them; completions of one list belong to one question, and may share the pass over its prompt.
        temperature: the one they were sampled at; it divides the logits here too.
        logits_chunk_size: tokens whose logits are in memory at once.
        autocast: data type of the body's matrix products ("bfloat16"); None and the head: that of the weights.
        entropies: compute them too.
        gradient_checkpointing: keep of each layer its input alone, and compute the layer again in the backward pass.
        torch_compile: run the layers as torch.compile makes them.

    Returns `TokenValues`, float32 at least.

    Raises:
        ConfigError: the model does not hand on to its attention who shares what.
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
                "model.attention", "sdpa", f"eager, as {type(model).__name__} does not hand on what is shared"
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
    """The model's own log-probabilities and entropies of all sampled tokens: [Q*G, T] each, 0 beyond the lengths."""
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
