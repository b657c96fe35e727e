"""Computes log-probabilities and entropies of tokens from hidden states, a chunk of logits at a time.

The backward pass computes the logits of a chunk again and overwrites them with their gradient. So one buffer of
chunk x vocabulary, in the head's data type, is enough for all chunks, and one of the weights' size for their gradient:
memory that is given back and taken again costs a CPU more than many a product. Work in float32 is done on a few tokens
at a time, which fit into a CPU's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import PreTrainedConfig


class LogitTransform(NamedTuple):
    """Says what a model does to the outputs z of its head: its logits are cap * tanh(scale * z / cap).

    Attributes:
        scale: factor of the outputs.
        cap: the soft cap, which no logit exceeds. None: there is none, and the logits are scale * z.
    """

    scale: float = 1.0
    cap: float | None = None


PLAIN = LogitTransform()
# The names that transformers' configs give the numbers of a `LogitTransform`.
FACTORS = ("logit_scale", "lm_head_multiplier")  # Cohere; Falcon-H1
DIVISOR = "logits_scaling"  # Granite, MiniCPM3. HyperCLOVA X multiplies by it.
CAPS = ("final_logit_softcapping", "logits_soft_cap")  # Gemma, NanoChat; RecurrentGemma


def find_logit_transform(config: PreTrainedConfig) -> LogitTransform:
    """Return what a model with this config does to the outputs of its head.

    `lens.models.probe` finds models of which this is not true.
    """
    text, scale = config.get_text_config(decoder=True), 1.0
    for name in FACTORS:
        scale *= getattr(text, name, None) or 1.0
    divisor = getattr(text, DIVISOR, None) or 1.0
    scale = scale * divisor if text.model_type == "hyperclovax" else scale / divisor
    caps = [cap for name in CAPS if (cap := getattr(text, name, None))]
    return LogitTransform(scale, caps[0] if caps else None)


def rate_tokens(
    head: nn.Linear,
    hidden: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    chunk_size: int,
    entropies: bool,
    transform: LogitTransform = PLAIN,
) -> tuple[Tensor, Tensor | None]:
    """Return the log-probability of each target, and the entropy of the distribution that it was drawn from, in nats.

    Both carry gradients.

    Args:
        head: the linear map from hidden states to logits, before the transform.
        hidden: [n, H], in the head's data type.
        targets: int64 [n], token ids.
        temperature: divides the logits.
        chunk_size: tokens whose logits are in memory at once.
        entropies: compute entropies too.
        transform: what the model does to the outputs of its head.

    Returns:
        Log-probabilities [n] and entropies [n] (or None), in float32 or wider.
    """
    divisor = temperature / transform.scale
    cap = None if transform.cap is None else transform.cap / temperature
    return HeadValues.apply(hidden, head.weight, head.bias, targets, divisor, cap, entropies, chunk_size)


# Logits in float32 per piece. There are two such buffers: 4 MiB each on a CPU, for its cache; 0.5 GiB each elsewhere.
IN_CACHE, AT_ONCE = 2**20, 2**27


def iterate_pieces(logits: Tensor, divisor: float, cap: float | None) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield a few tokens at a time: their slice, their logits [r, V], and a free buffer of that size.

    The logits are divided, soft-capped, and in float32 or wider. Every piece reuses the same two buffers.
    """
    rows = max(1, (IN_CACHE if logits.device.type == "cpu" else AT_ONCE) // logits.shape[1])
    scaled, room = (torch.empty_like(logits[:rows], dtype=widened_dtype(logits)) for _ in range(2))
    for start in range(0, len(logits), rows):
        those = logits[start : start + rows]
        own = scaled[: len(those)].copy_(those)
        if divisor != 1:
            own.div_(divisor)
        if cap is not None:
            own.div_(cap).tanh_().mul_(cap)
        yield slice(start, start + rows), own, room[: len(those)]


def widened_dtype(values: Tensor) -> torch.dtype:
    """Return the data type for log-probabilities and sums of these values: their own, but at least float32."""
    return torch.promote_types(values.dtype, torch.float32)


def iterate_chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk_size: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield some tokens at a time: their slice, and the head's outputs [c, V]. Every chunk reuses the same buffer."""
    buffer = hidden.new_empty(min(chunk_size, len(hidden)), len(weight))
    for start in range(0, len(hidden), chunk_size):
        chunk = slice(start, start + chunk_size)
        out = buffer[: len(hidden[chunk])]
        if bias is None:
            torch.mm(hidden[chunk], weight.T, out=out)
        else:
            torch.addmm(bias, hidden[chunk], weight.T, out=out)
        yield chunk, out


class HeadValues(Function):
    """Log-probabilities [n] of targets and entropies [n], from the hidden states [n, H], a chunk at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        divisor: float,
        cap: float | None,
        with_entropies: bool,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor | None]:
        logprobs = hidden.new_empty(len(hidden), dtype=widened_dtype(hidden))
        entropies = torch.empty_like(logprobs) if with_entropies else None
        with torch.autocast(hidden.device.type, enabled=False):  # the backward pass has none either
            for chunk, logits in iterate_chunks(hidden, weight, bias, chunk_size):
                words = targets[chunk, None]
                for part, scaled, room in iterate_pieces(logits, divisor, cap):
                    logs = torch.log_softmax(scaled, dim=1, out=room)
                    logprobs[chunk][part] = logs.gather(1, words[part]).squeeze(1)
                    if with_entropies:
                        entropies[chunk][part] = torch.exp(logs, out=scaled).mul_(logs).sum(dim=1).neg_()
        ctx.save_for_backward(hidden, weight, bias, targets, entropies)
        ctx.divisor, ctx.cap, ctx.chunk_size = divisor, cap, chunk_size
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor | None, of_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropies = ctx.saved_tensors
        if of_logprobs is None:
            of_logprobs = hidden.new_zeros(len(hidden), dtype=widened_dtype(hidden))
        of_targets = of_logprobs[:, None] / ctx.divisor  # [n, 1]
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(value) if is_wanted else None
            for is_wanted, value in zip(ctx.needs_input_grad, (hidden, weight, bias), strict=False)
        )
        for chunk, logits in iterate_chunks(hidden, weight, bias, ctx.chunk_size):
            words, of_words = targets[chunk, None], of_targets[chunk]
            for part, scaled, room in iterate_pieces(logits, ctx.divisor, ctx.cap):
                slope = None if ctx.cap is None else 1 - (scaled / ctx.cap).square_()  # of the soft cap
                if of_entropies is None:
                    gradient = torch.softmax(scaled, dim=1, out=room).mul_(-of_words[part])
                else:
                    logs = torch.log_softmax(scaled, dim=1, out=room)
                    probabilities = torch.exp(logs, out=scaled)
                    of_logs = of_entropies[chunk][part, None] / ctx.divisor
                    of_logs = logs.add_(entropies[chunk][part, None]).mul_(of_logs)
                    gradient = of_logs.add_(of_words[part]).mul_(probabilities).neg_()
                gradient.scatter_add_(1, words[part], of_words[part])
                logits[part] = gradient if slope is None else gradient.mul_(slope)
            if of_hidden is not None:
                torch.mm(logits, weight, out=of_hidden[chunk])
            if of_weight is not None:
                torch.addmm(of_weight, logits.T, hidden[chunk], out=of_weight)
            if of_bias is not None:
                of_bias += logits.sum(dim=0)
        return of_hidden, of_weight, of_bias, *(None,) * 5
