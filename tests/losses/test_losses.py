"""The surrogate against its definition by cases, and token weights against the sums they stand for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lens.losses.aggregation import token_weights
from lens.losses.importance import importance_weights
from lens.losses.ppo_clip import clipped_surrogate, kl_to_reference

MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


def loss_of(ratio: float, advantage: float, **choices: float) -> tuple[float, float]:
    """The loss of one token and its derivative by the log-probability."""
    logprob = torch.tensor([math.log(ratio) - 1.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.0], dtype=torch.float64)
    loss = clipped_surrogate(logprob, old, torch.tensor([advantage], dtype=torch.float64), **choices)
    loss.sum().backward()
    return loss.item(), logprob.grad.item()


def by_cases(ratio: float, advantage: float, low: float, high: float, dual_clip: float | None) -> tuple[float, float]:
    """The same by cases: a ratio that has gone far enough in the advantage's direction gains nothing more."""
    if advantage >= 0:
        return (-(1 + high) * advantage, 0.0) if ratio > 1 + high else (-ratio * advantage, -ratio * advantage)
    if ratio < 1 - low:
        return -(1 - low) * advantage, 0.0
    if dual_clip is not None and ratio > dual_clip:
        return -dual_clip * advantage, 0.0
    return -ratio * advantage, -ratio * advantage


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (0.5, 2.0, (-1.0, -1.0)),  # min(0.5 * 2, 0.8 * 2) = 1
        (1.0, 2.0, (-2.0, -2.0)),
        (1.1, 2.0, (-2.2, -2.2)),
        (1.5, 2.0, (-2.4, 0.0)),  # min(1.5 * 2, 1.2 * 2) = 2.4
        (0.5, -2.0, (1.6, 0.0)),  # min(-0.5 * 2, -0.8 * 2) = -1.6
        (0.9, -2.0, (1.8, 1.8)),
        (1.5, -2.0, (3.0, 3.0)),  # min(-1.5 * 2, -1.2 * 2) = -3
        (5.0, -2.0, (10.0, 10.0)),
        (5.0, 0.0, (0.0, 0.0)),
    ],
)
def test_surrogate_by_hand(ratio, advantage, expected):
    assert loss_of(ratio, advantage) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(2.9, -2.0, (5.8, 5.8)), (5.0, -2.0, (6.0, 0.0)), (5.0, 2.0, (-2.4, 0.0)), (0.5, -2.0, (1.6, 0.0))],
)
def test_dual_clip_bounds_the_loss_of_a_negative_advantage(ratio, advantage, expected):
    assert loss_of(ratio, advantage, dual_clip=3.0) == pytest.approx(expected)


@given(
    st.floats(0.01, 20),
    st.floats(-5, 5),
    st.floats(0.05, 0.9),
    st.floats(0.05, 2),
    st.none() | st.floats(3.5, 10),
)
def test_surrogate_agrees_with_its_cases(ratio, advantage, low, high, dual_clip):
    borders = [1 - low, 1 + high, dual_clip or 1.0]
    assume(min(abs(ratio - border) for border in borders) > 1e-6)  # where rounding would decide the case
    choices = {"epsilon_low": low, "epsilon_high": high, "dual_clip": dual_clip}
    expected = by_cases(ratio, advantage, low, high, dual_clip)
    assert loss_of(ratio, advantage, **choices) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_tokens_do_not_meet():
    ratios, advantages = (0.5, 1.5, 0.5, 1.5, 9.0), (1.0, 1.0, -1.0, -1.0, -1.0)
    loss = clipped_surrogate(torch.tensor(ratios).log(), torch.zeros(5), torch.tensor(advantages), dual_clip=3.0)
    assert loss.tolist() == pytest.approx([-0.5, -1.2, 0.8, 1.5, 3.0])


# --- weights ---


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


# --- KL ---


@given(st.floats(-5, 0), st.floats(-5, 0))
def test_kl_is_zero_at_equality_and_positive_elsewhere(logprob, reference):
    estimate = kl_to_reference(*(torch.tensor([x], dtype=torch.float64) for x in (logprob, reference))).item()
    assert estimate >= 0
    if logprob == reference:
        assert estimate == 0
    elif abs(logprob - reference) > 1e-6:
        assert estimate > 0


def test_kl_estimate_is_zero_for_equal_policies():
    logprobs = torch.linspace(-9, 0, 50)
    assert torch.equal(kl_to_reference(logprobs, logprobs), torch.zeros(50))


def test_kl_estimate_has_the_divergence_as_its_expectation():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 7, generator=generator, dtype=torch.float64).log_softmax(dim=1)
    divergence = (policy.exp() * (policy - reference)).sum()
    expectation = (policy.exp() * kl_to_reference(policy, reference)).sum()
    torch.testing.assert_close(expectation, divergence, atol=1e-14, rtol=1e-12)


# --- importance sampling ---

# Ratios policy / engine: 2, 0.5 and 4 in the first answer, which has three tokens, and 3 in the second, which has one.
RATIOS = torch.tensor([[2.0, 0.5, 4.0], [3.0, 7.0, 7.0]], dtype=torch.float64)
REAL = torch.tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize(
    ("mode", "cap", "expected"),
    [
        ("token_truncate", 2.5, [[2, 0.5, 2.5], [2.5, 1, 1]]),
        ("token_mask", 2.5, [[2, 0.5, 0], [0, 1, 1]]),
        ("token_mask", 3.5, [[2, 0.5, 0], [3, 1, 1]]),
        ("sequence_mask", 3.5, [[0, 0, 0], [3, 3, 3]]),  # 2 * 0.5 * 4 = 4 is above the cap
        ("sequence_mask", 5.0, [[4, 4, 4], [3, 3, 3]]),
    ],
)
def test_importance_weights_by_hand(mode, cap, expected):
    sampler = torch.full(RATIOS.shape, -1.5, dtype=torch.float64)
    weights = importance_weights(sampler + RATIOS.log(), sampler, REAL, mode, cap=cap)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(weights[REAL], expected[REAL])


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_mask"])
def test_an_engine_that_is_the_policy_leaves_every_weight_at_one(mode):
    logprobs = -torch.rand(2, 3)
    assert torch.equal(importance_weights(logprobs, logprobs, REAL, mode, cap=2.0), torch.ones(2, 3))


def test_an_unknown_rule_of_importance_sampling_is_refused():
    with pytest.raises(ValueError, match="token_truncate, token_mask, sequence_mask"):
        importance_weights(RATIOS, RATIOS, REAL, "none", cap=2.0)
