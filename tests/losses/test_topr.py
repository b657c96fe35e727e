"""TOPR by hand: positive answers weigh 1, negative ones at most their ratio."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens.losses import reinforce_loss, topr_loss
from tests.support.surrogates import rate

# The products of the ratios are 1/4, 4, 1/4 and 4.
HALVES, DOUBLES = [math.log(0.5)] * 2, [math.log(2.0)] * 2
ANSWERS = [HALVES, DOUBLES, HALVES, DOUBLES]


def test_the_weight_of_an_answer():
    losses, clipped, gradient = rate(topr_loss, ANSWERS, [1.0, 1.0, -2.0, -2.0])
    assert gradient == pytest.approx([-1.0, -1.0, -1.0, -1.0, 0.5, 0.5, 2.0, 2.0])
    logprobs = [-1 + x for answer in ANSWERS for x in answer]
    assert losses == pytest.approx([slope * logprob for slope, logprob in zip(gradient, logprobs, strict=True)])
    assert clipped == [False] * 6 + [True] * 2


def test_the_ratio_is_the_whole_answers_without_a_root():
    # With GSPO's root a long answer would keep a weight of 1/2 however improbable it became.
    long = [[math.log(0.5)] * 20]
    assert rate(topr_loss, long, [-1.0]).gradient == pytest.approx([0.5**20] * 20)


def test_a_larger_bound_lets_the_weight_rise():
    assert rate(topr_loss, [DOUBLES], [-1.0], ratio_max=3.0).gradient == pytest.approx([3.0, 3.0])
    assert rate(topr_loss, [DOUBLES], [-1.0], ratio_max=5.0).clipped == [False, False]


@given(st.lists(st.lists(st.floats(-2, 2), min_size=1, max_size=5), min_size=1, max_size=4))
def test_positive_answers_are_reinforces(log_ratios):
    advantages = [0.5 + place for place in range(len(log_ratios))]
    assert rate(topr_loss, log_ratios, advantages) == rate(reinforce_loss, log_ratios, advantages)


def test_no_advantage_is_no_loss():
    assert rate(topr_loss, ANSWERS, [0.0] * 4) == ([0.0] * 8, [False] * 8, [0.0] * 8)
