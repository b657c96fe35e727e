"""Log-probabilities in little memory against the plain computation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lens.models.loading import load_model
from tests.support.gradients import norms_in_their_own_type
from tests.support.losses import plain_pass
from tests.support.models import dense_values, gradients_of
from tests.support.rollouts import ALL, LENGTHS
from tests.support.rounding import TOLERANCE


@pytest.fixture
def exact(tiny) -> PreTrainedModel:
    """The tiny model in float64, so that rounding, which processors do differently, decides nothing."""
    norms_in_their_own_type(tiny[0].double())
    return tiny[0]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("packs", [[[3], [0], [5], [1]], [[1, 0], [3, 2], [4, 5]], [[4], [2, 3], [1]]])
def test_values_and_gradients_are_those_of_dense_logits(exact, rollouts, temperature, chunk, packs):
    model = exact
    rows = [row for pack in packs for row in pack]
    values = plain_pass(temperature=temperature, logits_chunk_size=chunk).rate_packs(model, rollouts, packs)
    dense = [dense_values(model, rollouts, row, temperature) for row in rows]
    logprobs, entropies = (torch.cat(parts) for parts in zip(*dense, strict=True))
    torch.testing.assert_close(values.logprobs, logprobs)
    torch.testing.assert_close(values.entropies, entropies)
    expected = gradients_of(model, logprobs)
    assert (gradients_of(model, values.logprobs) - expected).norm() < TOLERANCE["float64"] * expected.norm()


@pytest.mark.parametrize("chunk", [4, 1000])
def test_entropies_carry_gradients_and_are_left_out_where_nobody_wants_them(exact, rollouts, chunk):
    model, packs = exact, [[1, 0], [4]]
    forward_pass = plain_pass(temperature=0.7, logits_chunk_size=chunk)

    def dense() -> tuple[Tensor, ...]:
        each = [dense_values(model, rollouts, row, 0.7) for row in (1, 0, 4)]
        return tuple(torch.cat(values) for values in zip(*each, strict=True))

    for share in (0, 2):  # of the log-probabilities
        logprobs, entropies = dense()
        expected = gradients_of(model, entropies + share * logprobs)
        values = forward_pass.rate_packs(model, rollouts, packs)
        found = gradients_of(model, values.entropies + share * values.logprobs)
        assert (found - expected).norm() < TOLERANCE["float64"] * expected.norm()
    without = forward_pass.rate_packs(model, rollouts, packs, entropies=False)
    assert without.entropies is None and torch.equal(without.logprobs, values.logprobs)


def test_without_gradients_the_values_are_the_same(tiny, rollouts):
    model, _ = tiny
    forward_pass = plain_pass(temperature=0.7, logits_chunk_size=5)
    with torch.no_grad():
        values = forward_pass.rate_packs(model, rollouts, ALL)
    assert not values.logprobs.requires_grad
    torch.testing.assert_close(values.logprobs, forward_pass.rate_packs(model, rollouts, ALL).logprobs)


def test_values_are_at_least_float32(tiny_folder, rollouts):
    for dtype, expected in (("bfloat16", torch.float32), ("float64", torch.float64)):
        model, _ = load_model(str(tiny_folder), dtype=dtype)
        values = plain_pass(logits_chunk_size=8).rate_packs(model, rollouts, [[0]])
        assert values.logprobs.dtype == values.entropies.dtype == expected


@pytest.mark.parametrize("max_tokens", [17, 40, 10_000])
def test_recomputed_values_stand_where_their_tokens_stand(tiny, rollouts, max_tokens):
    model = tiny[0].double()
    sizes = {"logits_chunk_size": 5, "max_tokens_per_microbatch": max_tokens}
    table = plain_pass(temperature=0.7, **sizes).rate_rollouts(model, rollouts)
    for row, length in enumerate(LENGTHS):
        for values, expected in zip(table, dense_values(model, rollouts, row, 0.7), strict=True):
            assert values.shape == rollouts.completion_ids.shape and not values.requires_grad
            torch.testing.assert_close(
                values[row, :length], expected.detach().float(), atol=TOLERANCE["float32"], rtol=0
            )
            assert (values[row, length:] == 0).all()
