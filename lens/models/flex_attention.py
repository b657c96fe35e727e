"""Computes attention over a row of prompts that completions share with FlexAttention, a kernel for GPUs.

The kernel takes a rule that says which token sees which, and skips the blocks of the row in which nobody sees anybody.
So no value is copied for each completion. A GPU compiles the kernel once, for rows of every length.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lens.models.prompt_sharing import Sharing

log = logging.getLogger(__name__)

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of FlexAttention: batch, head, query, key -> bool


def make_rule(sharing: Sharing, window: int | None = None) -> Rule:
    """Return which token of a row sees which: itself and those before it, of its prompt and of its completion.

    Args:
        sharing: the completions and their prompts.
        window: how many tokens a token sees, itself included. None: all before it.
    """
    completion, position = sharing.home // sharing.places.shape[1], sharing.home % sharing.places.shape[1]
    pack, in_prompt = torch.zeros_like(completion), torch.zeros_like(completion, dtype=torch.bool)
    for start, length, _, _ in sharing.prompts:
        pack[start:] = start
        in_prompt[start : start + length] = True

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (pack[query] == pack[key]) & (in_prompt[key] | (completion[query] == completion[key]))
        near = same & (query >= key)
        return near if window is None else near & (position[query] - position[key] < window)

    return sees


def make_block_mask(sharing: Sharing, window: int | None = None) -> BlockMask:
    """Return the blocks of a row in which a token sees another; see `make_rule`."""
    device, tokens = sharing.home.device, len(sharing.home)
    make = compiled(create_block_mask) if device.type == "cuda" else create_block_mask
    return make(make_rule(sharing, window), None, None, tokens, tokens, device=device)


def flex_row_attention(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float | None) -> Tensor:
    """Compute attention over a row.

    Args:
        query, key, value: [1, heads, T, D]. Key and value may have fewer heads.
        mask: from `make_block_mask`.
        scaling: factor of the products of queries and keys. None: 1 / sqrt(D).

    Returns:
        [1, heads, T, D]
    """
    run = compiled(flex_attention) if query.device.type == "cuda" else flex_attention
    return run(query, key, value, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])


@functools.cache
def compiled(function: Callable) -> Callable:
    """Return a function compiled for shapes of every size."""
    return torch.compile(function, dynamic=True)


@functools.cache
def runs_here() -> bool:
    """Whether FlexAttention computes and differentiates on this machine's GPU. A warning says why if it does not.

    torch has no backward pass for it on a CPU, and a GPU needs Triton to compile it.
    """
    if not torch.cuda.is_available():
        return False
    sharing = Sharing.of([130], [[3, 200]]).to(torch.device("cuda"))
    values = torch.ones(1, 2, len(sharing.home), 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    try:
        flex_row_attention(values, values, values, make_block_mask(sharing), None).sum().backward()
    except (RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        log.warning("FlexAttention does not run here, so shared prompts use sdpa, which copies them: %s", reason)
        return False
    return True
