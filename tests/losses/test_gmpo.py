"""GMPO by hand, and against the geometric mean of PPO's clipped terms."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lens.losses import gmpo_loss
from tests.support.surrogates import rate

# Two tokens are beyond the range on either side.
ANSWER = [0.7, -0.7, 0.3]


def test_a_positive_answer_is_clipped_above_alone():
    losses, clipped, gradient = rate(gmpo_loss, [ANSWER], [2.0])
    value = -2 * math.exp((0.4 - 0.7 + 0.3) / 3)
    assert losses == pytest.approx([value] * 3)
    assert gradient == pytest.approx([0.0, value, value])
    assert clipped == [True, False, False]


def test_a_negative_answer_is_clipped_below_alone():
    losses, clipped, gradient = rate(gmpo_loss, [ANSWER], [-1.0])
    value = math.exp((0.7 - 0.4 + 0.3) / 3)
    assert losses == pytest.approx([value] * 3)
    assert gradient == pytest.approx([value, 0.0, value])
    assert clipped == [False, True, False]


def test_a_clip_on_both_sides_would_be_another_loss():
    # A clamp to [-0.4, 0.4] whatever the sign would hold tokens back that move against their advantage.
    clamped = sum(max(-0.4, min(0.4, x)) for x in ANSWER) / 3
    for advantage in (1.0, -1.0):
        assert rate(gmpo_loss, [ANSWER], [advantage]).losses[0] != pytest.approx(-advantage * math.exp(clamped))


def test_the_range_is_of_logarithms():
    # verl gives its ratio clip of 0.2 to the same clamp: ratios up to e^0.2 = 1.22, not 1.49.
    log_ratios = [[0.3, 0.1]]
    assert rate(gmpo_loss, log_ratios, [1.0]).losses[0] == pytest.approx(-math.exp(0.2))
    narrow = rate(gmpo_loss, log_ratios, [1.0], log_epsilon_low=0.2, log_epsilon_high=0.2)
    assert narrow.losses[0] == pytest.approx(-math.exp(0.15))
    assert narrow.clipped == [True, False]


def ppo_terms(answer: list[float], advantage: float, low: float, high: float) -> list[float]:
    """min(rho A, clip(rho) A) of each token."""
    ratios = [math.exp(x) for x in answer]
    return [min(r * advantage, min(max(r, math.exp(-low)), math.exp(high)) * advantage) for r in ratios]


@given(
    st.lists(st.lists(st.floats(-2, 2), min_size=1, max_size=6), min_size=1, max_size=4),
    st.floats(0.1, 1),
    st.floats(0.1, 1),
    st.data(),
)
def test_the_value_is_the_geometric_mean_of_the_clipped_terms(log_ratios, low, high, data):
    advantages = [data.draw(st.floats(0.1, 3) | st.floats(-3, -0.1)) for _ in log_ratios]
    losses, _, _ = rate(gmpo_loss, log_ratios, advantages, log_epsilon_low=low, log_epsilon_high=high)
    expected = []
    for answer, advantage in zip(log_ratios, advantages, strict=True):
        terms = [abs(term) for term in ppo_terms(answer, advantage, low, high)]
        mean = math.prod(terms) ** (1 / len(terms))
        expected += [-math.copysign(mean, advantage)] * len(answer)
    assert losses == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.sampled_from([-1.5, 0.8]))
@settings(max_examples=30)
def test_the_gradient_is_the_values_slope(answer, advantage):
    assume(all(abs(abs(x) - 0.4) > 1e-3 for x in answer))  # where the slope jumps
    step, slopes = 1e-6, []
    for place in range(len(answer)):
        moved = [[x + sign * step * (at == place) for at, x in enumerate(answer)] for sign in (1, -1)]
        up, down = (sum(rate(gmpo_loss, [m], [advantage]).losses) for m in moved)
        slopes.append((up - down) / (2 * step))
    assert rate(gmpo_loss, [answer], [advantage]).gradient == pytest.approx(slopes, rel=1e-6, abs=1e-7)
