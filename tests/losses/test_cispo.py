"""CISPO by hand: which weights it bounds, and that no token loses its gradient."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens.losses import cispo_loss, ppo_clip_loss
from tests.support.surrogates import rate


def logs(*ratios: float) -> list[list[float]]:
    return [[math.log(ratio)] for ratio in ratios]


def test_the_weight_is_the_ratio_up_to_its_cap():
    log_ratios = logs(0.1, 1.0, 4.0, 7.0, 7.0)
    losses, clipped, gradient = rate(cispo_loss, log_ratios, [2.0, 2.0, 2.0, 2.0, -1.0])
    weights = [0.1, 1.0, 4.0, 5.0, 5.0]
    advantages = [2.0, 2.0, 2.0, 2.0, -1.0]
    assert gradient == pytest.approx([-w * a for w, a in zip(weights, advantages, strict=True)])
    logprobs = [-1.0 + x for (x,) in log_ratios]
    assert losses == pytest.approx([g * logprob for g, logprob in zip(gradient, logprobs, strict=True)])
    assert clipped == [False, False, False, True, True]


def test_there_is_no_floor_unless_asked_for():
    # verl clamps the weight to [0.8, 1.2] under the same name: a token that became improbable keeps pushing there.
    far = logs(0.01, 3.0)
    assert rate(cispo_loss, far, [-1.0, 1.0]).gradient == pytest.approx([0.01, -3.0])
    floored = rate(cispo_loss, far, [-1.0, 1.0], ratio_min=0.8, ratio_max=1.2)
    assert floored.gradient == pytest.approx([0.8, -1.2])
    assert floored.clipped == [True, True]


@given(st.floats(-6, 6), st.floats(0.1, 5) | st.floats(-5, -0.1))
def test_every_token_has_a_gradient_where_ppo_has_dropped_it(log_ratio, advantage):
    (slope,) = rate(cispo_loss, [[log_ratio]], [advantage]).gradient
    assert slope == pytest.approx(-min(math.exp(log_ratio), 5.0) * advantage, rel=1e-12)
    if rate(ppo_clip_loss, [[log_ratio]], [advantage]).gradient == [0.0]:
        assert slope != 0
