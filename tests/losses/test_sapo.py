"""SAPO's gate by hand and from its shape."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens.losses import sapo_loss
from tests.support.surrogates import rate


def test_the_gate_by_hand():
    # tau (rho - 1) = log 3 has the sigmoid 3/4: the loss is -(4 / tau) 3/4 A, the gate 4 * 3/4 * 1/4 = 3/4.
    rho = 1 + math.log(3) / 2
    losses, clipped, gradient = rate(sapo_loss, [[math.log(rho)]], [1.5], tau_positive=2.0)
    assert losses == pytest.approx([-(4 / 2) * 0.75 * 1.5])
    assert gradient == pytest.approx([-0.75 * rho * 1.5])
    assert clipped == [False]


def test_the_temperature_goes_by_the_sign_of_the_advantage():
    rho = 1 + math.log(3)
    answers = [[math.log(rho)], [math.log(rho)]]
    positive, negative = rate(sapo_loss, answers, [1.0, -1.0], tau_positive=1.0, tau_negative=2.0).gradient
    assert positive == pytest.approx(-0.75 * rho)  # sigmoid(log 3) = 3/4
    assert negative == pytest.approx(4 * 0.9 * 0.1 * rho)  # sigmoid(2 log 3) = 9/10
    assert negative < -positive


def test_the_value_at_a_ratio_of_one_is_not_the_advantage_but_the_gradient_is():
    losses, _, gradient = rate(sapo_loss, [[0.0], [0.0]], [2.0, -2.0])
    assert losses == pytest.approx([-2 / 1.0 * 2.0, 2 / 1.05 * 2.0])
    assert gradient == pytest.approx([-2.0, 2.0])


@given(st.floats(-3, 2), st.floats(0.3, 3), st.sampled_from([-1.0, 1.0]))
def test_the_gate_fades_on_both_sides_and_is_the_values_slope(log_ratio, tau, advantage):
    def at(x: float):
        return rate(sapo_loss, [[x]], [advantage], tau_positive=tau, tau_negative=tau)

    (slope,) = at(log_ratio).gradient
    gate = -slope / (math.exp(log_ratio) * advantage)
    assert gate == pytest.approx(1 / math.cosh(tau * (math.exp(log_ratio) - 1) / 2) ** 2, rel=1e-9)  # another form
    assert 0 < gate <= 1 + 1e-12
    step = 1e-6
    numerical = (at(log_ratio + step).losses[0] - at(log_ratio - step).losses[0]) / (2 * step)
    assert slope == pytest.approx(numerical, rel=1e-5, abs=1e-8)
