"""Remembers prompts and answers apart while answers are decoded, and attends to both.

transformers' own cache copies a prompt's keys and values for each answer, copies everything at each token, and its
attention copies them again for the heads that share them. Here

* a prompt's keys and values exist once, and one matrix product serves all its answers;
* an answer's stand in memory with room for more tokens;
* heads that share keys stand beside each other in one product, so nothing is copied for them.

Importing this module registers the attention with transformers as ANSWERS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.masking_utils import sdpa_mask

ANSWERS = "lens_answers"  # its name among transformers' attention implementations
ROOM = 16  # tokens that an answer has room for at first; later for half as many again as it has
# Arguments of an attention layer that ask nothing of its scores; the mask says where a window ends.
HARMLESS = {
    "dropout",
    "position_ids",
    "cache_position",
    "sliding_window",
    "is_causal",
    "use_cache",
    "output_router_logits",
}


class Grid:
    """Which rows of a batch answer which prompt. A prompt with fewer answers than others has empty places.

    Attributes:
        prompt_of: int64 [n], each row's prompt, in ascending order.
        prompts: number of prompts; each has a row.
        width: the most rows of one prompt.
    """

    def __init__(self, prompt_of: Tensor):
        counts = prompt_of.bincount()
        self.prompt_of, self.prompts, self.width = prompt_of, len(counts), int(counts.max())
        self.is_full = len(prompt_of) == self.prompts * self.width
        first = counts.cumsum(dim=0) - counts  # [Q]
        self._place = torch.arange(len(prompt_of), device=counts.device) + (
            torch.arange(self.prompts, device=counts.device) * self.width - first
        ).repeat_interleave(counts)  # [n]
        self._row = torch.zeros(self.prompts * self.width, dtype=torch.long, device=counts.device)
        self._row[self._place] = torch.arange(len(prompt_of), device=counts.device)

    def by_prompt(self, values: Tensor) -> Tensor:
        """Put the rows of each prompt together: [n, h, g, C] -> [Q, h, width * g, C]."""
        values = values if self.is_full else values.index_select(0, self._row)
        return values.unflatten(0, (self.prompts, self.width)).transpose(1, 2).flatten(2, 3)

    def by_row(self, values: Tensor) -> Tensor:
        """Take them apart again: [Q, h, width * g, C] -> [n, h, g, C]."""
        values = values.unflatten(2, (self.width, -1)).transpose(1, 2).flatten(0, 1)
        return values if self.is_full else values.index_select(0, self._place)


class AnswerLayer(CacheLayerMixin):
    """Keys and values of one layer: of Q prompts with P tokens, left-padded, and of n answers with T tokens so far.

    Args:
        prompts: keys and values [q, h, p, D] of batches of prompts, left-padded. Of a long prompt they may be the last
            ones alone: those that a window will still see.
        longest: P.
        grid: which answers belong to which prompt.
        dtype: data type to attend in.
    """

    def __init__(self, prompts: Sequence[tuple[Tensor, Tensor]], longest: int, grid: Grid, dtype: torch.dtype):
        super().__init__()
        self.grid = grid
        self.prompt_keys, self.prompt_values = (
            torch.cat([nn.functional.pad(part.to(dtype), (0, 0, longest - part.shape[2], 0)) for part in parts])
            for parts in zip(*prompts, strict=True)
        )
        self.keys, self.values = (
            prompt.new_empty(len(grid.prompt_of), prompt.shape[1], 0, prompt.shape[3])
            for prompt in (self.prompt_keys, self.prompt_values)
        )
        self.length = 0
        self.newest: tuple[Tensor, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the layer is complete from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in keys and values [n, h, 1, D] of each answer's next token. They are returned as they are."""
        if self.length == self.keys.shape[2]:
            self.keys, self.values = (with_room(old, max(ROOM, self.length // 2)) for old in (self.keys, self.values))
        self.keys[:, :, self.length] = key_states.squeeze(2)
        self.values[:, :, self.length] = value_states.squeeze(2)
        self.length += 1
        self.newest = key_states, value_states
        return self.newest

    def attend(self, query: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Attend from the newest token of each answer.

        Args:
            query: [n, heads, 1, D].
            mask: [n, 1, 1, P + T], true where a token is seen, or a number to add to its score. None: all are seen.
            scaling: of the scores.

        Returns:
            [n, 1, heads, D].
        """
        keys, values = self.keys[:, :, : self.length], self.values[:, :, : self.length]  # [n, h, T, D]
        q = query.to(keys.dtype).reshape(len(query), keys.shape[1], -1, query.shape[3]) * scaling  # [n, h, g, D]
        prompt = self.grid.by_row(self.grid.by_prompt(q) @ self.prompt_keys.mT)  # [n, h, g, P]
        scores = torch.cat([prompt, q @ keys.mT], dim=-1)  # [n, h, g, P + T]
        if mask is not None:
            scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
        shares = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
        prompt, own = shares.tensor_split([self.prompt_keys.shape[2]], dim=-1)
        output = self.grid.by_row(self.grid.by_prompt(prompt) @ self.prompt_values) + own @ values  # [n, h, g, D]
        return output.reshape(len(query), 1, query.shape[1], -1).to(query.dtype)

    def keep(self, rows: Tensor, grid: Grid, prompts: Tensor) -> None:
        """Keep the answers in some rows, and some prompts, which a new grid connects."""
        self.grid = grid
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        if len(prompts) < len(self.prompt_keys):
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]

    def get_seq_length(self) -> int:
        """Return the number of tokens of a prompt and its answer, padding included."""
        return self.prompt_keys.shape[2] + self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens a mask covers, and the place of the first."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1


class AnswerCache(Cache):
    """The layers' keys and values, once prompts are read and while their answers are decoded.

    Args:
        prompts: what transformers' cache holds after each batch of prompts, left-padded.
        longest: tokens of the longest prompt.
        num_generations: answers to each prompt.
    """

    def __init__(self, prompts: Sequence[DynamicCache], longest: int, num_generations: int):
        found = [[(layer.keys, layer.values) for layer in cache.layers] for cache in prompts]
        first = found[0][0][0]
        dtype = torch.promote_types(first.dtype, torch.float32) if first.device.type == "cpu" else first.dtype
        count = sum(len(layers[0][0]) for layers in found)
        self.grid = Grid(torch.arange(count, device=first.device).repeat_interleave(num_generations))
        super().__init__(layers=[AnswerLayer(layer, longest, self.grid, dtype) for layer in zip(*found, strict=True)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the answers in these rows, which ascend, and the prompts that still have some."""
        prompts, prompt_of = self.grid.prompt_of[beam_idx].unique(return_inverse=True)
        self.grid = Grid(prompt_of)
        for layer in self.layers:
            layer.keep(beam_idx, self.grid, prompts)


def with_room(values: Tensor, more: int) -> Tensor:
    """Return a copy of values [n, h, T, D] with room for more tokens, which is not filled."""
    n, heads, length, channels = values.shape
    larger = values.new_empty(n, heads, length + more, channels)
    larger[:, :, :length] = values
    return larger


def attend_to_answers(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    answers: AnswerCache | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute scaled dot-product attention from the newest token of each answer; see `AnswerLayer.attend`.

    Args:
        module: the attention layer.
        query, key, value: [n, heads, 1, D]; key and value as the cache returned them.
        attention_mask, scaling: see there. No scaling is D ** -0.5.
        answers: the keyword argument ``answers`` of the model's forward.
        options: further options, of which only HARMLESS ones are understood.

    Raises:
        NotImplementedError: the layer does something else with its keys or scores.
    """
    unknown = [name for name, asked in options.items() if asked is not None and name not in HARMLESS]
    newest = () if answers is None else answers.layers[module.layer_idx].newest
    if unknown or not newest or key is not newest[0] or value is not newest[1]:
        raise NotImplementedError(f"{type(module).__name__}: {unknown or 'its keys are not those of the cache'}")
    layer = answers.layers[module.layer_idx]
    return layer.attend(query, attention_mask, query.shape[3] ** -0.5 if scaling is None else scaling), None


@contextmanager
def decoding_answers(model: PreTrainedModel) -> Iterator[None]:
    """Let a model attend to an `AnswerCache` inside this context.

    Raises:
        NotImplementedError: its layers do not take their attention from transformers' interface.
    """
    if not model._can_set_attn_implementation():
        raise NotImplementedError(f"{type(model).__name__} has an attention of its own")
    before = model.config._attn_implementation
    model.set_attn_implementation(ANSWERS)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(ANSWERS, attend_to_answers)
AttentionMaskInterface.register(ANSWERS, sdpa_mask)
