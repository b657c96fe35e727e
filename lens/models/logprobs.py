"""Computes log-probabilities and entropies of sampled tokens, in little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel

from lens.distributed.collectives import sum_over_processes, take_turns, world_size
from lens.models.head import find_logit_transform, rate_tokens
from lens.models.layers import find_decoder, use_changed_layers
from lens.models.loading import DTYPES
from lens.models.packing import is_flat, lay_out, shares_prompts, split_into_microbatches
from lens.models.sharding import call_with_weights
from lens.sampling.rollouts import Rollouts


class TokenValues(NamedTuple):
    """Values of n sampled tokens: [n] each, completion after completion, in the order they were asked for."""

    logprobs: Tensor
    entropies: Tensor | None


@dataclass(frozen=True)
class ForwardPass:
    """Says how a model is run on rollouts, and runs it.

    The language-model head sees only completion tokens, a chunk at a time, and the backward pass computes it again. So
    the largest buffer is chunk x vocabulary, however long prompts and completions are.

    Attributes:
        temperature: the sampling temperature; it divides the logits here too.
        max_tokens_per_microbatch: tokens that are passed through the model at once; see `split_into_microbatches`.
        logits_chunk_size: tokens whose logits are in memory at once.
        autocast: data type of the matrix products below the head ("bfloat16"). None: that of the weights, which the
            head always uses.
        gradient_checkpointing: keep only the input of each layer, and compute the layer again in the backward pass.
        torch_compile: compile the layers with torch.compile.
    """

    temperature: float
    max_tokens_per_microbatch: int
    logits_chunk_size: int
    autocast: str | None = None
    gradient_checkpointing: bool = False
    torch_compile: bool = False

    @classmethod
    def build(cls, trainer: DictConfig) -> ForwardPass:
        """Make it from the sections rollouts and memory of a config's trainer section."""
        known = {**trainer.rollouts, **trainer.memory}
        return cls(**{f.name: known[f.name] for f in fields(cls)})

    def rate_packs(
        self, model: PreTrainedModel, rollouts: Rollouts, packs: Sequence[Sequence[int]], *, entropies: bool = True
    ) -> TokenValues:
        """Return the log-probability and entropy of every sampled token of some completions, in one pass.

        They carry gradients unless gradients are off.

        Args:
            model: a causal language model whose logits are a `LogitTransform` of a linear map of its last hidden state.
            rollouts: the completions.
            packs: rows of the completions to take. Those of one list belong to one question and may share the pass over
                its prompt.
            entropies: compute entropies too.

        Returns:
            `TokenValues` in float32 or wider.
        """
        if not shares_prompts(model):
            packs = [[row] for pack in packs for row in pack]
        layout = lay_out(rollouts, packs, flat=is_flat(model), sharing=shares_prompts(model)).to(model.device)
        checkpointing = self.gradient_checkpointing and torch.is_grad_enabled()
        changed = checkpointing or self.torch_compile
        layers = use_changed_layers(model, checkpointing, self.torch_compile) if changed else nullcontext()
        dtype = DTYPES[self.autocast or "bfloat16"]

        def values(model: PreTrainedModel) -> tuple[Tensor, ...]:
            with torch.autocast(model.device.type, dtype, enabled=self.autocast is not None), layers:
                hidden = find_decoder(model)(
                    input_ids=layout.ids, position_ids=layout.positions, use_cache=False, **layout.for_attention()
                ).last_hidden_state[layout.predicting]  # [n, H]
            head = model.get_output_embeddings()
            return rate_tokens(
                head,
                hidden.to(head.weight.dtype),
                layout.targets,
                temperature=self.temperature,
                chunk_size=self.logits_chunk_size,
                entropies=entropies,
                transform=find_logit_transform(model.config),
            )

        return TokenValues(*call_with_weights(model, values))

    def rate_in_turns(
        self, model: PreTrainedModel, rollouts: Rollouts, rows: Sequence[int], *, entropies: bool = True
    ) -> Iterator[tuple[list[int], TokenValues, bool]]:
        """Rate this process's share of some completions, a micro-batch at a time.

        Yields:
            The rows of a micro-batch, its `TokenValues`, and whether it counts (see `take_turns`).
        """
        budget = self.max_tokens_per_microbatch
        batches = split_into_microbatches(model, rollouts, rows, budget, processes=world_size())
        for packs, counts in take_turns(batches):
            values = self.rate_packs(model, rollouts, packs, entropies=entropies)
            yield [row for pack in packs for row in pack], values, counts

    @torch.no_grad()
    def rate_rollouts(self, model: PreTrainedModel, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities and entropies of all sampled tokens, without gradients.

        Returns:
            [Q*G, T] each, the same in all processes; 0 beyond a completion's length.
        """
        mask = rollouts.mask
        logprobs, entropies = (torch.zeros_like(rollouts.logprobs) for _ in range(2))
        for rows, values, counts in self.rate_in_turns(model, rollouts, range(len(rollouts.lengths))):
            for whole, part in zip((logprobs, entropies), values, strict=True):
                block = torch.zeros_like(whole[rows])
                block[mask[rows]] = part.to(block)
                whole[rows] = block * counts
        return sum_over_processes(logprobs), sum_over_processes(entropies)
