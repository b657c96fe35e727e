"""Attention of completions to their shared prompt and themselves by matrix products, for bfloat16 on a CPU.

torch's own kernel reaches about a tenth of the speed of its matrix products there. Here, as in that kernel, a block of
queries at a time has its scores in float32, and the backward pass computes them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

BLOCK = 64  # queries of a sequence at once


@dataclass
class Group:
    """n sequences of L queries behind the same P tokens: a prompt's completions; or a prompt, alone behind nothing.

    Attributes:
        first: the token of the row where the queries begin; they follow one another.
        prompt: P.
        tokens: int64 [n, P + L], the token of the row at each place of the prompt and then of the queries.
        held: int64, which of the n * L places hold a query, as none does beyond a completion's end; None: all do.
    """

    first: int
    prompt: int
    tokens: Tensor
    held: Tensor | None = None

    def heads(self, values: Tensor, heads: int, keys: bool, scratch: Scratch, name: str) -> Tensor:
        """Values of the row [T, h, D] -> [n * heads, L, D], or [n * heads, P + L, D] of keys; each h serves several."""
        tokens = self.tokens if keys else self.tokens[:, self.prompt :]
        (n, length), (_, shared, channels) = tokens.shape, values.shape
        found = values.index_select(0, tokens.flatten()).view(n, length, shared, 1, channels).permute(0, 2, 3, 1, 4)
        made = scratch(name, n, shared, heads // shared, length, channels)
        return made.copy_(found.expand_as(made)).view(n * heads, length, channels)

    def row(self, values: Tensor) -> Tensor:
        """[n, L, ...] of queries -> [tokens, ...] in the order of the row."""
        values = values.flatten(0, 1)
        return values if self.held is None else values.index_select(0, self.held)


class Scratch:
    """Memory by name that each layer uses again: the system takes longer to give it than a layer to fill it."""

    def __init__(self) -> None:
        self.dtype = torch.float32
        self.memory: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Contiguous, and whatever was in it."""
        size = math.prod(shape)
        if name not in self.memory or len(self.memory[name]) < size or self.memory[name].dtype != self.dtype:
            self.memory[name] = torch.empty(size, dtype=self.dtype)
        return self.memory[name][:size].view(shape)


@contextmanager
def products_in_bfloat16() -> Iterator[None]:
    """Meanwhile float32 matrix products may round what they multiply, which is exact for what was bfloat16 before."""
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


class GroupAttention(Function):
    """Attention of a row: queries [T, heads, D], keys and values [T, key heads, D] -> [T, heads, D]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: list[Group], scaling: float, scratch: Scratch
    ) -> Tensor:
        heads, output = query.shape[1], torch.empty(query.shape, dtype=query.dtype)
        scratch.dtype = torch.promote_types(query.dtype, torch.float32)
        with products_in_bfloat16(), torch.autocast("cpu", enabled=False):
            for group in groups:
                q = group.heads(query, heads, False, scratch, "query")  # [n * heads, L, D]
                k = group.heads(key, heads, True, scratch, "key")  # [n * heads, P + L, D]
                v = group.heads(value, heads, True, scratch, "value")
                o = scratch("output", *q.shape)
                for queries, seen in blocks(group):
                    torch.bmm(weights(q[:, queries], k[:, seen], scaling, scratch), v[:, seen], out=o[:, queries])
                put(output, group, o)
        ctx.save_for_backward(query, key, value, output)
        ctx.groups, ctx.scaling, ctx.scratch = groups, scaling, scratch
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output = ctx.saved_tensors
        scaling, scratch = ctx.scaling, ctx.scratch
        heads, key_heads = query.shape[1], key.shape[1]
        scratch.dtype = torch.promote_types(query.dtype, torch.float32)
        of_query = torch.empty(query.shape, dtype=query.dtype)
        of_key, of_value = (torch.zeros(key.shape, dtype=scratch.dtype) for _ in range(2))
        with products_in_bfloat16(), torch.autocast("cpu", enabled=False):
            for group in ctx.groups:
                q = group.heads(query, heads, False, scratch, "query")
                k = group.heads(key, heads, True, scratch, "key")
                v = group.heads(value, heads, True, scratch, "value")
                o = group.heads(output, heads, False, scratch, "output")
                g = group.heads(gradient, heads, False, scratch, "gradient")
                if group.held is not None:  # what no query stands at has no gradient
                    n = len(group.tokens)
                    beyond = torch.ones(q.shape[1] * n, dtype=torch.bool)
                    beyond[group.held] = False
                    g.view(n, heads, *g.shape[1:]).masked_fill_(beyond.view(n, 1, -1, 1), 0)
                mean = o.mul_(g).sum(dim=2, keepdim=True)  # of the weights' gradient under the weights
                dq, dk, dv = scratch("dq", *q.shape), scratch("dk", *k.shape), scratch("dv", *v.shape)
                for queries, seen in reversed(list(blocks(group))):
                    w = weights(q[:, queries], k[:, seen], scaling, scratch)
                    dw = torch.bmm(g[:, queries], v[:, seen].mT, out=scratch("dw", *w.shape))
                    ds = dw.sub_(mean[:, queries]).mul_(w)  # of the scores
                    is_added = seen.stop < k.shape[1]  # the last block comes first and sees all
                    dq[:, queries].baddbmm_(ds, k[:, seen], beta=0, alpha=scaling)
                    dk[:, seen].baddbmm_(ds.mT, q[:, queries], beta=is_added, alpha=scaling)
                    dv[:, seen].baddbmm_(w.mT, g[:, queries], beta=is_added)
                put(of_query, group, dq)
                for total, part in ((of_key, dk), (of_value, dv)):
                    add(total, group, part.view(len(group.tokens), key_heads, -1, *k.shape[1:]).sum(dim=2))
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None, None


def blocks(group: Group) -> Iterator[tuple[slice, slice]]:
    """Queries, and the keys that they see."""
    length = group.tokens.shape[1] - group.prompt
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        yield slice(start, end), slice(0, group.prompt + end)


def weights(query: Tensor, key: Tensor, scaling: float, scratch: Scratch) -> Tensor:
    """How much of each key's value a query takes: [N, l, D], [N, s, D] -> [N, l, s]; the last query sees all keys."""
    (n, length, _), seen = query.shape, key.shape[1]
    scores = scratch("scores", n, length, seen).baddbmm_(query, key.mT, beta=0, alpha=scaling)
    later = torch.ones(length, length, dtype=torch.bool).triu_(1)
    scores[..., seen - length :].masked_fill_(later, -torch.inf)
    return torch.softmax(scores, dim=-1, out=scratch("weights", *scores.shape))


def put(row: Tensor, group: Group, values: Tensor) -> None:
    """Values of queries [n * heads, L, D] into their places of a row [T, heads, D]."""
    found = values.view(len(group.tokens), -1, *values.shape[1:]).transpose(1, 2).to(row.dtype)  # [n, L, heads, D]
    found = group.row(found)
    row[group.first : group.first + len(found)] = found


def add(row: Tensor, group: Group, values: Tensor) -> None:
    """Values of the prompt and the queries [n, h, P + L, D] onto those of a row [T, h, D]."""
    values = values.transpose(1, 2)  # [n, P + L, h, D]
    own = group.row(values[:, group.prompt :])
    row[group.first : group.first + len(own)] += own
    if group.prompt:
        row[group.first - group.prompt : group.first] += values[:, : group.prompt].sum(dim=0)
