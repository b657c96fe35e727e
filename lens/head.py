"""The language-model head: log-probabilities and entropies of tokens from hidden states, a chunk of logits at a time.

The logits of a chunk are computed again in the backward pass, and both passes work in place: the largest buffers are
chunk x vocabulary, and few.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def token_head(
    head: nn.Linear, hidden: Tensor, targets: Tensor, *, temperature: float, chunk_size: int, entropies: bool
) -> tuple[Tensor, Tensor | None]:
    """The log-probability of each target, and the entropy of what it was drawn from, in nats; both carry gradients.

    Args:
        head: the map from hidden states to logits.
        hidden: [n, H], in the head's data type.
        targets: int64 [n].
        temperature: divides the logits.
        chunk_size: tokens whose logits are in memory at once.
        entropies: whether they are wanted.

    Returns:
        [n] each, float32 at least; None for entropies that are not wanted.
    """
    parts = [
        HeadValues.apply(part, head.weight, head.bias, words, temperature, entropies)
        for part, words in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    logprobs, found = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(found) if entropies else None


def log_distribution(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """The log-probability of every word [c, V], float32 at least."""
    logits = nn.functional.linear(hidden, weight, bias)  # [c, V]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).div_(temperature)
    return logits.log_softmax(dim=-1)


class HeadValues(Function):
    """Log-probabilities [c] of targets and entropies [c], from hidden states [c, H]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        with_entropies: bool,
    ) -> tuple[Tensor, Tensor | None]:
        logs = log_distribution(hidden, weight, bias, temperature)  # [c, V]
        logprobs = logs.gather(1, targets[:, None]).squeeze(1)  # [c]
        entropies = logs.mul_(logs.exp()).sum(dim=-1).neg_() if with_entropies else None  # [c]
        ctx.save_for_backward(hidden, weight, bias, targets, entropies)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_logprobs: Tensor | None, of_entropies: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, bias, targets, entropies = ctx.saved_tensors
        logs = log_distribution(hidden, weight, bias, ctx.temperature)  # [c, V]
        if of_logprobs is None:
            of_logprobs = logs.new_zeros(len(logs))
        if of_entropies is None:
            gradient = logs.exp_().mul_(-of_logprobs[:, None])  # [c, V], of the logits over the temperature
        else:
            factor = (logs + entropies[:, None]).mul_(of_entropies[:, None]).add_(of_logprobs[:, None])
            gradient = logs.exp_().mul_(factor.neg_())
        gradient.scatter_add_(1, targets[:, None], of_logprobs[:, None])
        gradient = gradient.div_(ctx.temperature).to(hidden.dtype)
        wanted = ctx.needs_input_grad
        return (
            gradient @ weight if wanted[0] else None,
            gradient.T @ hidden if wanted[1] else None,
            gradient.sum(dim=0) if bias is not None and wanted[2] else None,
            None,
            None,
            None,
        )
