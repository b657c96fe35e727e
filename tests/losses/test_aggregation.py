"""Token weights against the sums they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lens.losses.aggregation import token_weights

MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


def aggregate(losses: list[list[float]], mode: str, max_completion_length: int) -> float:
    """verl's aggregation of the losses of each completion's tokens; completions without tokens do not count."""
    losses = [completion for completion in losses if completion]
    if mode == "token-mean":
        return sum(map(sum, losses)) / sum(map(len, losses))
    divisors = {
        "seq-mean-token-sum": [1] * len(losses),
        "seq-mean-token-mean": list(map(len, losses)),
        "seq-mean-token-sum-norm": [max_completion_length] * len(losses),
    }[mode]
    return sum(sum(completion) / divisor for completion, divisor in zip(losses, divisors, strict=True)) / len(losses)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", [1 / 6, 1 / 6, 0, 1 / 6]),  # 2 + 1 + 0 + 3 tokens
        ("seq-mean-token-sum", [1 / 3, 1 / 3, 0, 1 / 3]),  # three completions with tokens
        ("seq-mean-token-mean", [1 / 6, 1 / 3, 0, 1 / 9]),
        ("seq-mean-token-sum-norm", [1 / 30, 1 / 30, 0, 1 / 30]),
    ],
)
def test_weights_by_hand(mode, expected):
    weights = token_weights(torch.tensor([2, 1, 0, 3]), mode, max_completion_length=10)
    assert weights.dtype == torch.float64
    assert weights.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
@given(losses=st.lists(st.lists(st.floats(-3, 3), max_size=12), min_size=1, max_size=8))
def test_weighted_sum_is_the_aggregate(mode, losses):
    assume(any(losses))
    weights = token_weights(torch.tensor(list(map(len, losses))), mode, max_completion_length=12).tolist()
    weighted = sum(weight * sum(completion) for weight, completion in zip(weights, losses, strict=True))
    assert weighted == pytest.approx(aggregate(losses, mode, 12), rel=1e-9, abs=1e-12)
    assert all(weight == 0 for weight, completion in zip(weights, losses, strict=True) if not completion)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_without_tokens_weighs_nothing(mode):
    assert token_weights(torch.tensor([0, 0]), mode, max_completion_length=4).tolist() == [0, 0]


def test_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"loss_agg_mode='mean': one of token-mean, seq-mean-token-sum, "):
        token_weights(torch.tensor([1]), "mean", max_completion_length=4)
