"""Intervals over seeds, and over seeds and problems."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lens.reporting.intervals import Difference, Estimate, bootstrap


def test_the_interval_is_students():
    for values in ([1.0, 2.0, 4.0], [0.3, 0.1, -0.2, 0.4, 0.35]):
        estimate = Estimate.over(values)
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert estimate.mean == pytest.approx(np.mean(values))
        assert (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width) == pytest.approx((low, high))
        assert estimate.decided == (stats.ttest_1samp(values, 0).pvalue < 0.05)


def test_below_three_seeds_there_is_no_interval():
    for values in ([5.0], [5.0, 6.0]):
        estimate = Estimate.over(values)
        assert math.isnan(estimate.half_width)
        assert not estimate.decided
        assert "±" not in str(estimate)
    assert str(Estimate.over([10.0, 11.0, 12.0])) == "11.0 ± 2.5"


def test_the_bootstrap_speaks_for_seeds_and_problems():
    """With effects of seed s and problem p, the mean varies by var(s)/S + var(p)/P, and the interval says so."""
    rng = np.random.default_rng(3)
    for of_seeds, of_problems in ((5.0, 0.0), (0.0, 20.0), (5.0, 20.0)):
        seed, problem = rng.normal(0, of_seeds, (40, 1)), rng.normal(0, of_problems, (1, 300))
        low, high = bootstrap(2 + seed + problem)
        sd = math.sqrt(seed.var() / 40 + problem.var() / 300)
        assert high - low == pytest.approx(2 * 1.96 * sd, rel=0.08)
        assert low < (2 + seed + problem).mean() < high


def test_the_bootstrap_says_the_same_each_time():
    values = np.random.default_rng(0).normal(size=(5, 60))
    assert bootstrap(values) == bootstrap(values)


def test_a_difference_is_decided_where_both_intervals_leave_out_zero():
    rng = np.random.default_rng(1)
    up = Difference.paired(rng.normal(5, 1, (6, 100)))
    assert up.verdict == "higher"
    assert Difference.paired(-rng.normal(5, 1, (6, 100))).verdict == "lower"
    problems = np.zeros((6, 3))
    problems[:, 0] = [9.0, 9.1, 9.2, 9.0, 9.1, 9.2]  # the same in every seed, but one problem of three
    one_problem = Difference.paired(problems)
    assert one_problem.decided
    assert one_problem.low == 0
    assert one_problem.verdict == "undecided"
    assert str(up).endswith("higher")
    assert str(one_problem).endswith("undecided")
    assert up.sentence.endswith("over seeds and problems: higher, decided on 6 paired seeds")
    assert one_problem.sentence.endswith(
        f"[+0.0, {one_problem.high:+.1f}] over seeds and problems: not decided on 6 paired seeds"
    )


def test_two_seeds_give_their_values_and_no_interval():
    two = Difference.paired(np.array([[1.0, 2.0], [-1.0, 0.0]]))
    assert str(two) == "+0.5 (+1.5; -0.5)"
    assert two.verdict == "undecided"
    assert two.sentence == "+0.5 points of pass@1: not decided, as 2 paired seeds give no interval"
    assert math.isnan(two.low)
    one = Difference.paired(np.array([[1.0, 2.0]]))
    assert str(one) == "+1.5 (one seed)"
    assert one.sentence == "+1.5 points of pass@1: not decided, as 1 paired seed gives no interval"
    assert str(Estimate.over([math.nan])) == "missing"
