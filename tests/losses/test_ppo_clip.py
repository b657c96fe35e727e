"""The surrogate against its definition by cases, and the estimate of the KL divergence."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lens.losses.ppo_clip import clipped_surrogate, kl_to_reference


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


@given(st.floats(-5, 0), st.floats(-5, 0))
def test_kl_is_zero_at_equality_and_positive_elsewhere(logprob, reference):
    estimate = kl_to_reference(*(torch.tensor([x], dtype=torch.float64) for x in (logprob, reference))).item()
    assert estimate >= -torch.finfo(torch.float64).eps  # exp(d) - d - 1 rounds
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
