"""REINFORCE by hand."""

from __future__ import annotations

import pytest

from lens.losses import reinforce_loss
from tests.support.surrogates import rate


def test_the_loss_is_the_advantage_times_the_log_probability_however_far_the_policy_has_moved():
    losses, clipped, gradient = rate(reinforce_loss, [[0.5, -4.0], [0.9]], [[2.0, -1.0], -3.0], old=-1.0)
    assert losses == pytest.approx([-2.0 * -0.5, 1.0 * -5.0, 3.0 * -0.1])
    assert gradient == pytest.approx([-2.0, 1.0, 3.0])
    assert clipped == [False] * 3
