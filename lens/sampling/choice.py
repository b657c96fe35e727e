"""Chooses tokens: random numbers for a question's answers, and tokens for given logits and numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lens.problems.prompts import Prompt
from lens.seeding import derive_seed

AT_ONCE = 2**18  # logits that are looked at together, so that what is made of them stays in the processor's cache
BLOCK = 256  # tokens whose probabilities are first added up, so that only one block needs a running sum


def draw_uniforms(seed: int, prompt: Prompt, num_generations: int, length: int) -> np.ndarray:
    """Draw the numbers in [0, 1) that decide every token of a question's completions: float64 [G, length]."""
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, prompt.problem_id)))
    return generator.random((num_generations, length))


def sample_tokens(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Sample one token a row by inverting its distribution function.

    Args:
        logits: [n, V].
        uniforms: float64 [n] in [0, 1).
        temperature: divides the logits; 0 takes the most likely token.
        top_p: keeps the smallest set of most likely tokens with at least this mass. 1 keeps all.

    Returns:
        Token ids, int64 [n], and their log-probabilities under the distribution that was sampled from, float32 [n].
    """
    rows = max(1, AT_ONCE // logits.shape[1])
    parts = [
        _sample_rows(some.float(), numbers, temperature, top_p)
        for some, numbers in zip(logits.split(rows), uniforms.split(rows), strict=True)
    ]
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _sample_rows(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    if temperature > 0:
        logits = logits / temperature
        if top_p < 1:
            logits = _keep_nucleus(logits, top_p)
    logits = logits - logits.amax(dim=-1, keepdim=True)
    weights = logits.exp()  # [n, V], probabilities but for a factor
    width = min(BLOCK, weights.shape[1])
    blocks = torch.nn.functional.pad(weights, (0, -weights.shape[1] % width)).unflatten(1, (-1, width))  # [n, B, width]
    sums = blocks.sum(dim=-1).double().cumsum(dim=-1)  # [n, B]
    total = sums[:, -1:]
    if temperature == 0:
        tokens = logits.argmax(dim=-1, keepdim=True)
    else:
        block, rest = _invert(sums, uniforms[:, None] * total)  # [n, 1], [n, 1]
        chosen = blocks.take_along_dim(block[..., None], dim=1).squeeze(1)  # [n, width]
        tokens = block * width + _invert(chosen.double().cumsum(dim=-1), rest)[0]
    logprobs = logits.gather(1, tokens) - total.log()
    return tokens.squeeze(1), logprobs.squeeze(1).float()


def _invert(cumulative: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first place whose cumulative value is above the target, and how far the target is above the one before.

    A target at the end, where rounding may have put it, counts as just below it: no place without weight is found.

    Args:
        cumulative: float64 [n, B], running sums.
        targets: float64 [n, 1].

    Returns:
        Places, int64 [n, 1], and float64 [n, 1].
    """
    end = cumulative[:, -1:]
    targets = torch.minimum(targets, end.nextafter(torch.zeros_like(end)))
    places = torch.searchsorted(cumulative, targets, right=True).clamp(max=cumulative.shape[1] - 1)
    before = cumulative.gather(1, (places - 1).clamp(min=0)) * (places > 0)
    return places, targets - before


def _keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Set logits [n, V] to minus infinity outside the smallest set of likely tokens with a mass of at least top_p."""
    ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    dropped = torch.zeros_like(logits, dtype=torch.bool)
    dropped.scatter_(1, order, ordered.cumsum(dim=-1) - ordered >= top_p)
    return logits.masked_fill(dropped, -torch.inf)
