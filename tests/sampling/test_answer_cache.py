"""What is remembered of prompts and answers, and which answers belong to which prompt."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from lens.sampling.answer_cache import ROOM, AnswerCache, Grid
from tests.support.rounding import rounding

HEADS, KEY_HEADS, WIDTH = 4, 2, 8


def plain_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one query [heads, D] to keys and values [h, S, D], a head at a time."""
    found = []
    for head, q in enumerate(query):
        k, v = (x[head * len(keys) // len(query)] for x in (keys, values))
        found.append((k @ q * 0.3).softmax(dim=0) @ v)
    return torch.stack(found)


def read_prompts(lengths: list[int]) -> tuple[DynamicCache, list[tuple[Tensor, Tensor]]]:
    """A layer's cache of left-padded prompts, and their keys and values [h, P, D] without padding."""
    longest, cache = max(lengths), DynamicCache()
    keys, values = torch.randn(2, len(lengths), KEY_HEADS, longest, WIDTH, dtype=torch.float64)
    cache.update(keys, values, 0)
    return cache, [(k[:, longest - n :], v[:, longest - n :]) for k, v, n in zip(keys, values, lengths, strict=True)]


def test_answers_attend_to_their_prompt_and_to_themselves_while_others_leave():
    torch.manual_seed(0)
    lengths = [3, 5, 2]
    parts = [read_prompts(lengths[:2]), read_prompts(lengths[2:])]
    known = [pair for _, pairs in parts for pair in pairs]
    cache = AnswerCache([cache for cache, _ in parts], 5, 2)
    answers = [(*known[row // 2], lengths[row // 2]) for row in range(6)]  # keys, values and prompt tokens of each
    for step in range(ROOM + 20):  # beyond the room that there is at first
        if step in (2, 7, ROOM + 3):
            kept = torch.tensor({2: [0, 1, 2, 4, 5], 7: [0, 3, 4], ROOM + 3: [1, 2]}[step])
            cache.reorder_cache(kept)
            answers = [answers[row] for row in kept]
        n = len(answers)
        key, value = torch.randn(2, n, KEY_HEADS, 1, WIDTH, dtype=torch.float64)
        query = torch.randn(n, HEADS, 1, WIDTH, dtype=torch.float64)
        answers = [
            (torch.cat([k, a], 1), torch.cat([v, b], 1), p) for (k, v, p), a, b in zip(answers, key, value, strict=True)
        ]
        assert cache.update(key, value, 0) == (key, value)
        seen = torch.stack([torch.arange(5 + step + 1) >= 5 - length for *_, length in answers])[:, None, None]
        found = cache.layers[0].attend(query, seen, 0.3)
        expected = torch.stack([plain_attention(q[:, 0], k, v) for q, (k, v, _) in zip(query, answers, strict=True)])
        torch.testing.assert_close(found.squeeze(1), expected, atol=rounding("float64", 200), rtol=0)
        assert cache.get_seq_length() == 5 + step + 1


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_a_grid_puts_rows_together_by_prompt_and_takes_them_apart_again(counts):
    prompt_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    grid = Grid(prompt_of)
    values = torch.arange(len(prompt_of) * 12.0).view(-1, 2, 3, 2)  # [n, h, g, C]
    together = grid.by_prompt(values)
    assert together.shape == (len(counts), 2, max(counts) * 3, 2)
    for prompt, count in enumerate(counts):
        own = values[prompt_of == prompt].transpose(0, 1).flatten(1, 2)  # [h, count * g, C]
        assert torch.equal(together[prompt, :, : count * 3], own)
    assert torch.equal(grid.by_row(together), values)
