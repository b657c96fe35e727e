"""Computes the attention of completions to their shared prompt and to themselves, for bfloat16 on a CPU.

There torch's own attention kernel reaches about a tenth of the speed of torch's matrix products, so this module uses
the products. As in that kernel, one block of queries at a time has its scores in memory, in float32, and the backward
pass computes them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

BLOCK = 64  # queries of each sequence whose scores are in memory at once
Room = Callable[..., Tensor]  # room(*shape) returns memory of that shape


@dataclass
class Group:
    """n sequences of at most L queries each, all behind the same P tokens.

    They are the n completions of a prompt of P tokens; or the prompt itself, with n = 1 and P = 0. "The row" is the one
    row of T tokens in which all prompts and completions stand.

    Attributes:
        first: position in the row of the first query. The queries follow one another.
        prompt: P.
        tokens: int64 [n, P + L], position in the row of each token of the prompt, then of each query.
        held: int64, which of the n * L places hold a query; places beyond a completion's end do not. None: all do.
    """

    first: int
    prompt: int
    tokens: Tensor
    held: Tensor | None = None

    def of_queries(self, values: Tensor, room: Room) -> Tensor:
        """Gather the queries' values from the row: [T, heads, D] -> [n * heads, L, D]."""
        return self._gathered(values, values.shape[1], self.tokens[:, self.prompt :], room)

    def of_keys(self, values: Tensor, heads: int, room: Room) -> Tensor:
        """Gather the keys' values from the row: [T, h, D] -> [n * heads, P + L, D], each of h for heads / h heads."""
        return self._gathered(values, heads, self.tokens, room)

    def _gathered(self, values: Tensor, heads: int, tokens: Tensor, room: Room) -> Tensor:
        (n, length), (_, shared, channels) = tokens.shape, values.shape
        found = values.index_select(0, tokens.flatten()).view(n, length, shared, 1, channels).permute(0, 2, 3, 1, 4)
        made = room(n, shared, heads // shared, length, channels)
        return made.copy_(found.expand_as(made)).view(n * heads, length, channels)

    def without_absent(self, values: Tensor) -> Tensor:
        """Set values of queries [n * heads, L, D] to zero, in place, wherever there is no query."""
        if self.held is not None:
            n, length = len(self.tokens), values.shape[1]
            absent = torch.ones(n * length, dtype=torch.bool)
            absent[self.held] = False
            values.view(n, -1, *values.shape[1:]).masked_fill_(absent.view(n, 1, length, 1), 0)
        return values

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield blocks of queries, each with the keys that it sees."""
        length = self.tokens.shape[1] - self.prompt
        for start in range(0, length, BLOCK):
            end = min(start + BLOCK, length)
            yield slice(start, end), slice(0, self.prompt + end)

    def put(self, row: Tensor, values: Tensor) -> None:
        """Write values of queries [n * heads, L, D] to their positions in a row [T, heads, D]."""
        found = values.view(len(self.tokens), -1, *values.shape[1:]).transpose(1, 2).to(row.dtype)  # [n, L, heads, D]
        found = self._held(found)
        row[self.first : self.first + len(found)] = found

    def add(self, row: Tensor, values: Tensor) -> None:
        """Add values of keys [n * heads, P + L, D] to a row [T, h, D], summed over the heads that share a key."""
        n, shared = len(self.tokens), row.shape[1]
        values = values.view(n, shared, -1, *values.shape[1:]).sum(dim=2).transpose(1, 2)  # [n, P + L, h, D]
        own = self._held(values[:, self.prompt :])
        row[self.first : self.first + len(own)] += own
        if self.prompt:
            row[self.first - self.prompt : self.first] += values[:, : self.prompt].sum(dim=0)

    def _held(self, values: Tensor) -> Tensor:
        """Drop the empty places: [n, L, ...] of queries -> [tokens, ...] in the order of the row."""
        values = values.flatten(0, 1)
        return values if self.held is None else values.index_select(0, self.held)


class Scratch:
    """Named memory that all layers reuse. Allocating it anew would take longer than filling it."""

    def __init__(self) -> None:
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def room(self, name: str, dtype: torch.dtype) -> Room:
        """Return a function from a shape to contiguous, uninitialised memory."""

        def of(*shape: int) -> Tensor:
            size, key = math.prod(shape), (name, dtype)
            if key not in self.memory or len(self.memory[key]) < size:
                self.memory[key] = torch.empty(size, dtype=dtype)
            return self.memory[key][:size].view(shape)

        return of


@contextmanager
def products_at_the_speed_of(dtype: torch.dtype) -> Iterator[None]:
    """Allow float32 matrix products to round their inputs to bfloat16, if ``dtype`` is bfloat16.

    The model's values are in bfloat16 already. The attention weights are not, but torch's own kernel rounds them too.
    Autocast is off inside.
    """
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    if dtype is torch.bfloat16:
        setting.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        setting.fp32_precision = before


class GroupAttention(Function):
    """Attention over a row: queries [T, heads, D], keys and values [T, key heads, D] -> [T, heads, D]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: list[Group], scaling: float, scratch: Scratch
    ) -> Tensor:
        heads, output = query.shape[1], torch.empty(query.shape, dtype=query.dtype)
        room = partial(scratch.room, dtype=torch.promote_types(query.dtype, torch.float32))
        with products_at_the_speed_of(query.dtype):
            for group in groups:
                q = group.of_queries(query, room("query"))  # [n * heads, L, D]
                k = group.of_keys(key, heads, room("key"))  # [n * heads, P + L, D]
                v = group.of_keys(value, heads, room("value"))
                o = room("output")(*q.shape)
                for queries, seen in group.blocks():
                    shares = attention_shares(q[:, queries], k[:, seen], scaling, room)
                    torch.bmm(shares, v[:, seen], out=o[:, queries])
                group.put(output, o)
        ctx.save_for_backward(query, key, value, output)
        ctx.groups, ctx.scaling, ctx.scratch = groups, scaling, scratch
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output = ctx.saved_tensors
        heads, wide = query.shape[1], torch.promote_types(query.dtype, torch.float32)
        room = partial(ctx.scratch.room, dtype=wide)
        of_query = torch.empty(query.shape, dtype=query.dtype)
        of_key, of_value = (torch.zeros(key.shape, dtype=wide) for _ in range(2))
        with products_at_the_speed_of(query.dtype):
            for group in ctx.groups:
                q = group.of_queries(query, room("query"))
                k = group.of_keys(key, heads, room("key"))
                v = group.of_keys(value, heads, room("value"))
                g = group.without_absent(group.of_queries(gradient, room("gradient")))
                o = group.of_queries(output, room("output"))
                mean = o.mul_(g).sum(dim=2, keepdim=True)  # mean of the shares' gradient, weighted by the shares
                dq, dk, dv = room("dq")(*q.shape), room("dk")(*k.shape), room("dv")(*v.shape)
                for queries, seen in reversed(list(group.blocks())):
                    shares = attention_shares(q[:, queries], k[:, seen], ctx.scaling, room)
                    of_shares = torch.bmm(g[:, queries], v[:, seen].mT, out=room("of shares")(*shares.shape))
                    of_scores = of_shares.sub_(mean[:, queries]).mul_(shares)
                    added = float(seen.stop < k.shape[1])  # the last block comes first, sees all keys and sets them
                    dq[:, queries].baddbmm_(of_scores, k[:, seen], beta=0, alpha=ctx.scaling)
                    dk[:, seen].baddbmm_(of_scores.mT, q[:, queries], beta=added, alpha=ctx.scaling)
                    dv[:, seen].baddbmm_(shares.mT, g[:, queries], beta=added)
                group.put(of_query, dq)
                group.add(of_key, dk)
                group.add(of_value, dv)
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None, None


def attention_shares(query: Tensor, key: Tensor, scaling: float, room: Callable[[str], Room]) -> Tensor:
    """Return the causal attention weights of queries [N, l, D] on keys [N, s, D]: [N, l, s].

    The last query sees all s keys.
    """
    (n, length, _), seen = query.shape, key.shape[1]
    scores = room("scores")(n, length, seen).baddbmm_(query, key.mT, beta=0, alpha=scaling)
    later = torch.ones(length, length, dtype=torch.bool).triu_(1)
    scores[..., seen - length :].masked_fill_(later, -torch.inf)
    return torch.softmax(scores, dim=-1, out=room("shares")(*scores.shape))
