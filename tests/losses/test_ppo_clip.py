"""PPO's surrogate against its definition by cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lens.losses.ppo_clip import clipped_surrogate, ppo_clip_loss
from tests.support.surrogates import rate


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


# --- as a loss of configs/loss ---


def test_clipped_tokens_are_those_that_the_epsilons_took_the_gradient_from():
    ratios, advantages = (0.5, 0.9, 1.5, 0.5, 1.5, 9.0, 9.0), (1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 0.0)
    log_ratios = [[math.log(ratio)] for ratio in ratios]
    losses, clipped, gradient = rate(ppo_clip_loss, log_ratios, advantages)
    assert losses == pytest.approx([-0.5, -0.9, -1.2, 0.8, 1.5, 9.0, 0.0])
    assert clipped == [False, False, True, True, False, False, False]
    assert [token for token, slope in enumerate(gradient) if slope == 0] == [2, 3, 6]  # the last has no advantage


def test_dual_clip_is_off_unless_asked_for_and_does_not_count_as_clipped():
    # verl bounds every negative advantage at 3. Under a flat penalty this takes the gradient of each runaway token.
    runaway = [[math.log(5.0)]]
    assert rate(ppo_clip_loss, runaway, [-1.0]).gradient == pytest.approx([5.0])
    bounded = rate(ppo_clip_loss, runaway, [-1.0], dual_clip=3.0)
    assert bounded.losses == pytest.approx([3.0])
    assert bounded.gradient == [0.0]
    assert bounded.clipped == [False]


def test_the_old_name_gives_the_same_losses():
    generator = torch.Generator().manual_seed(0)
    logprobs, old, advantages = torch.randn(3, 50, generator=generator)
    options = {"epsilon_low": 0.1, "epsilon_high": 0.3, "dual_clip": 2.0}
    whole = ppo_clip_loss(logprobs=logprobs, old_logprobs=old, advantages=advantages, **options)
    assert torch.equal(clipped_surrogate(logprobs, old, advantages, **options), whole.losses)
