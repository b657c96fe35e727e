"""QAE: hand values, and the quantile against its definition in exact fractions."""

from __future__ import annotations

import statistics
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens.objectives.qae import qae_advantages
from tests.support.rounding import IN_A_GROUP

EPS = 1e-6


def verdicts(right: int, size: int) -> torch.Tensor:
    """One group whose first answers are right."""
    return torch.arange(size)[None] < right


def test_groups_by_hand():
    # K = 0.4: with 3/5 of the answers right or fewer, 2/5 or more are wrong, and the baseline is 0; beyond, it is 1.
    # Standard deviations: c (5 - c) / 5 / 4 = 1/5, 3/10, 3/10, 1/5 for c = 1, 2, 3, 4 right ones.
    correct = torch.cat([verdicts(right, 5) for right in range(6)])
    one, two = 1 / (0.2**0.5 + EPS), 1 / (0.3**0.5 + EPS)
    expected = [[0] * 5, [one, 0, 0, 0, 0], [two, two, 0, 0, 0], [two, two, two, 0, 0], [0, 0, 0, 0, -one], [0] * 5]
    torch.testing.assert_close(qae_advantages(correct), torch.tensor(expected), atol=IN_A_GROUP, rtol=IN_A_GROUP)


def test_the_quantile_is_a_verdict_and_not_interpolated():
    # Half of four are wrong. The median of 0, 0, 1, 1 would be 1/2 by interpolation, and every answer would teach.
    advantages = qae_advantages(verdicts(2, 4), quantile=0.5)[0].tolist()
    assert advantages == pytest.approx([1 / (3**-0.5 + EPS)] * 2 + [0, 0], abs=IN_A_GROUP)


@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_share_equal_to_the_quantile_counts_as_reached(tenths):
    # 1 - 0.9 < 1/10 in floating point, so a comparison of shares of right answers would fail here.
    advantages = qae_advantages(verdicts(10 - tenths, 10), quantile=tenths / 10)
    assert (advantages[0, : 10 - tenths] > 0).all()
    assert (advantages[0, 10 - tenths :] == 0).all()


@given(st.integers(1, 30), st.integers(1, 99), st.data())
def test_the_baseline_is_the_smallest_verdict_that_the_share_does_not_exceed(size, hundredths, data):
    group = data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    baseline = next(x for x in (0, 1) if Fraction(sum(r <= x for r in group), size) >= Fraction(hundredths, 100))
    deviation = statistics.stdev(group) if size > 1 else 0.0
    expected = [(r - baseline) / (deviation + EPS) for r in group]
    found = qae_advantages(torch.tensor([group], dtype=torch.bool), quantile=hundredths / 100)[0].tolist()
    assert found == pytest.approx(expected, rel=IN_A_GROUP, abs=IN_A_GROUP)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_a_group_teaches_by_one_verdict_alone(group, quantile):
    advantages = qae_advantages(torch.tensor([group]), quantile=quantile)
    assert (advantages >= 0).all() or (advantages <= 0).all()


@pytest.mark.parametrize("quantile", [0, 1, -0.1, 1.5, float("nan")])
def test_a_quantile_outside_its_range_is_refused(quantile):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        qae_advantages(verdicts(1, 4), quantile=quantile)
