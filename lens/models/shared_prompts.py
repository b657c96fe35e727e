"""Computes attention such that the completions of a question share one pass over their prompt.

Prompts and completions stand in one row of tokens without padding, each prompt once. So every linear layer computes
each token once. For attention alone the row is spread into a batch with one completion per sequence, behind a copy of
its prompt. There plain causal attention is enough: no mask is needed, and no work goes to completions that must not see
each other.

On a GPU one kernel does that without copies; see lens/models/flex_attention.py.

Importing this module registers both with transformers, as SHARED_PROMPTS and FLEX_SHARED_PROMPTS.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lens.models.flex_attention import flex_row_attention, make_block_mask
from lens.models.group_attention import GroupAttention
from lens.models.prompt_sharing import Sharing

# Names among transformers' attention implementations.
SHARED_PROMPTS = "sdpa_shared_prompts"
FLEX_SHARED_PROMPTS = "flex_attention_shared_prompts"


class Spread(Function):
    """Spreads values of the row [T, C] into the batch [N, S, C]; the backward pass sums a prompt's copies."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, sharing: Sharing) -> Tensor:
        ctx.sharing = sharing
        return values.index_select(0, sharing.places.flatten()).view(*sharing.places.shape, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        sharing = ctx.sharing
        of_row = gradient.flatten(0, 1).index_select(0, sharing.home)
        for start, length, first, count in sharing.prompts:
            if count > 1:
                of_row[start : start + length] = gradient[first : first + count, :length].sum(dim=0)
        return of_row, None


class Collect(Function):
    """Collects values of the batch [N, S, C] into the row [T, C], each token from its home."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, sharing: Sharing) -> Tensor:
        ctx.sharing = sharing
        return values.flatten(0, 1).index_select(0, sharing.home)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        sharing, channels = ctx.sharing, gradient.shape[1]
        of_batch = gradient.new_zeros(sharing.places.numel(), channels)
        of_batch[sharing.home] = gradient  # no place occurs twice
        return of_batch.view(*sharing.places.shape, channels), None


@torch.compiler.disable  # its loops and shapes change with every micro-batch
def shared_prompts_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sharing: Sharing | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute scaled dot-product attention; with ``sharing``, over a row of prompts that completions share.

    Without ``sharing`` this is transformers' own function.

    Args:
        module: the attention layer.
        query, key, value: [B, heads, L, D], or [1, heads, T, D] with sharing. Key and value may have fewer heads.
        attention_mask: as transformers makes it; ignored with sharing.
        sharing: the keyword argument ``sharing`` of the model's forward.
        sliding_window: how many tokens a token sees, itself included. None: all before it.
        options: further options of transformers' own function.

    Returns:
        [B, L, heads, D], or [1, T, heads, D] with sharing; and None in place of attention weights.
    """
    if sharing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    sharing.uses += 1
    band = make_window_mask(sharing.places.shape[1], sliding_window, query.device)
    is_plain = band is None and not options.get("dropout") and query.shape[3] == value.shape[3]
    if is_plain and query.device.type == "cpu" and {query.dtype, key.dtype, value.dtype} == {torch.bfloat16}:
        scaling = options.get("scaling") or query.shape[3] ** -0.5
        row = (values.squeeze(0).transpose(0, 1) for values in (query, key, value))  # [T, heads, D]
        return GroupAttention.apply(*row, sharing.groups, scaling, sharing.scratch)[None], None

    def spread(values: Tensor) -> Tensor:  # [1, heads, T, D] -> [N, heads, S, D]
        flat = values.squeeze(0).transpose(0, 1).flatten(1)  # [T, heads * D]
        return Spread.apply(flat, sharing).unflatten(2, (-1, values.shape[3])).transpose(1, 2)

    output, _ = sdpa_attention_forward(
        module, spread(query), spread(key), spread(value), band, **{**options, "is_causal": band is None}
    )  # [N, S, heads, D]
    return Collect.apply(output.flatten(2), sharing).view(1, len(sharing.home), *output.shape[2:]), None


@torch.compiler.disable  # the kernel is compiled by itself
def flex_shared_prompts_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sharing: Sharing | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute what `shared_prompts_attention` computes, with FlexAttention where prompts are shared."""
    if sharing is None or options.get("dropout") or query.shape[3] != value.shape[3]:
        return shared_prompts_attention(
            module, query, key, value, attention_mask, sharing=sharing, sliding_window=sliding_window, **options
        )
    sharing.uses += 1
    if sliding_window not in sharing.block_masks:
        sharing.block_masks[sliding_window] = make_block_mask(sharing, sliding_window)
    row = flex_row_attention(query, key, value, sharing.block_masks[sliding_window], options.get("scaling"))
    return row.transpose(1, 2), None


def make_window_mask(length: int, size: int | None, device: torch.device) -> Tensor | None:
    """Return a causal mask, bool [1, 1, length, length], in which a token sees ``size`` tokens, itself included.

    Returns None if every token sees all before it.
    """
    if size is None or length <= size:
        return None
    sees = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return (sees & ~sees.tril(-size))[None, None]


for name, attention in {
    SHARED_PROMPTS: shared_prompts_attention,
    FLEX_SHARED_PROMPTS: flex_shared_prompts_attention,
}.items():
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
