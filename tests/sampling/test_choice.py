"""Choosing one token a row: with what frequency, and with what log-probability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from lens.sampling.choice import AT_ONCE, BLOCK, sample_tokens
from tests.support.rounding import rounding

LOGITS = torch.tensor([1.0, -2.0, 3.0, 0.0, 2.0, -3.0, 2.5])


def nucleus(temperature: float, top_p: float) -> Tensor:
    """The distribution to sample from, token by token in plain Python."""
    probabilities = (LOGITS.double() / temperature).softmax(dim=0).tolist()
    kept, mass = [], 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        if mass >= top_p:
            break
        kept.append(token)
        mass += probabilities[token]
    return torch.tensor([p / mass if token in kept else 0.0 for token, p in enumerate(probabilities)])


SETTINGS = pytest.mark.parametrize(
    ("temperature", "top_p", "kept"), [(1.0, 1.0, 7), (0.8, 1.0, 7), (2.0, 1.0, 7), (1.0, 0.95, 4), (1.0, 0.3, 1)]
)


@SETTINGS
def test_choices_have_the_right_frequencies(temperature, top_p, kept):
    count = 20_000
    expected = nucleus(temperature, top_p)
    assert int((expected > 0).sum()) == kept
    uniforms = torch.from_numpy(np.random.default_rng(0).random(count))
    tokens, logprobs = sample_tokens(LOGITS.expand(count, -1), uniforms, temperature, top_p)
    counts = tokens.bincount(minlength=len(LOGITS)).double()
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    if kept > 1:
        wanted = expected[possible].double()
        assert chisquare(counts[possible], count * wanted / wanted.sum()).pvalue > 0.001
    torch.testing.assert_close(logprobs, expected[tokens].log(), atol=1e-5, rtol=0)


@SETTINGS
def test_choices_invert_the_distribution_function(temperature, top_p, kept):
    count = 10_000
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count  # evenly spread: no chance is left
    tokens, _ = sample_tokens(LOGITS.expand(count, -1), uniforms, temperature, top_p)
    assert (tokens.diff() >= 0).all()
    counts = tokens.bincount(minlength=len(LOGITS)).double()
    assert (counts - count * nucleus(temperature, top_p)).abs().max() <= 1.01


def test_the_ends_of_the_unit_interval_choose_tokens_that_have_a_probability():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).expand(2, -1)
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 1.0, 1.0)
    assert tokens.tolist() == [1, 3]
    assert logprobs.isfinite().all()


def test_temperature_zero_takes_the_most_likely_token():
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    tokens, logprobs = sample_tokens(logits, torch.zeros(2, dtype=torch.float64), 0, 1.0)
    assert tokens.tolist() == [2, 4]
    torch.testing.assert_close(logprobs, LOGITS.log_softmax(dim=0)[[2, 2]])


@given(
    words=st.sampled_from([1, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 1, AT_ONCE // 2 + 5]),
    spread=st.sampled_from([0.0, 1.0, 20.0]),
    temperature=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_a_choice_is_that_of_the_running_sum_over_the_whole_vocabulary(words, spread, temperature, seed):
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(0, spread, (3, words)).astype(np.float32))
    uniforms = generator.random(3)
    tokens, logprobs = sample_tokens(logits, torch.from_numpy(uniforms), temperature, 1.0)
    weights = np.exp((logits.double().numpy() - logits.double().numpy().max(axis=1, keepdims=True)) / temperature)
    after = weights.cumsum(axis=1) / weights.sum(axis=1, keepdims=True)
    before = after - weights / weights.sum(axis=1, keepdims=True)
    rows, slack = range(3), rounding("float32", BLOCK)
    assert (before[rows, tokens] - slack <= uniforms).all() and (uniforms <= after[rows, tokens] + slack).all()
    expected = np.log(weights[rows, tokens] / weights.sum(axis=1))
    np.testing.assert_allclose(logprobs, expected, atol=slack * max(1, spread), rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_without_probability_is_never_chosen(uniform):
    logits = torch.full((1, 4 * BLOCK), -torch.inf)
    logits[0, [BLOCK + 3, 2 * BLOCK + 5]] = torch.tensor([0.0, 0.5])  # the first and the last block have none
    tokens, logprobs = sample_tokens(logits, torch.tensor([uniform], dtype=torch.float64), 1.0, 1.0)
    assert tokens.item() in (BLOCK + 3, 2 * BLOCK + 5)
    assert logprobs.isfinite().all()
