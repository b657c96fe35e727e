"""NGRPO: hand values, the closed form of negative groups, and plain Python."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens.objectives.grpo import grpo_advantages
from lens.objectives.ngrpo import ngrpo_advantages
from tests.support.rounding import IN_A_GROUP

EPS = 1e-6
REWARDS = st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=16)


def test_one_of_eight_right_by_hand():
    # Nine rewards with the virtual one, two of them 1: mean 2/9, sample variance 2 * 7 / 9 / 8 = 7/36.
    advantages = ngrpo_advantages(torch.arange(8)[None] < 1)[0].tolist()
    deviation = math.sqrt(7 / 36) + EPS
    assert advantages == pytest.approx([7 / 9 / deviation, *[-2 / 9 / deviation] * 7], abs=IN_A_GROUP)
    assert advantages[:2] == pytest.approx([1.764, -0.504], abs=5e-4)


@pytest.mark.parametrize("size", [1, 2, 8, 16, 64])
def test_a_negative_group_gets_minus_one_over_the_root_of_its_size_and_one(size):
    # Mean 1/(G + 1), sample variance 1/(G + 1). With the population's it would be -1/sqrt(G).
    advantages = ngrpo_advantages(torch.zeros(1, size, dtype=torch.bool), eps=0.0)
    assert advantages[0].tolist() == pytest.approx([-1 / math.sqrt(size + 1)] * size, rel=IN_A_GROUP)


def test_a_positive_group_gets_exactly_zero():
    assert ngrpo_advantages(torch.ones(2, 7, dtype=torch.bool), num_virtual=3).tolist() == [[0] * 7] * 2


@given(REWARDS, st.integers(1, 4), st.floats(-2, 2, width=32))
def test_any_group_agrees_with_plain_python(rewards, num_virtual, max_reward):
    population = rewards + [max_reward] * num_virtual
    mean, deviation = statistics.fmean(population), statistics.stdev(population)
    expected = [(r - mean) / (deviation + EPS) for r in rewards]
    values = torch.tensor([rewards])
    found = ngrpo_advantages(values > 0, rewards=values, max_reward=max_reward, num_virtual=num_virtual)
    assert found[0].tolist() == pytest.approx(expected, abs=IN_A_GROUP, rel=IN_A_GROUP)


@given(REWARDS)
def test_without_virtual_answers_it_is_grpo(rewards):
    values = torch.tensor([rewards])
    found = ngrpo_advantages(values > 0, rewards=values, num_virtual=0)
    assert torch.equal(found, grpo_advantages(values > 0, rewards=values))


def test_a_negative_number_of_virtual_answers_is_refused():
    with pytest.raises(ValueError, match="num_virtual=-1: must be at least 0"):
        ngrpo_advantages(torch.tensor([[True, False]]), num_virtual=-1)
