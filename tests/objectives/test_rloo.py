"""RLOO and Dr. GRPO: hand values, and whose gradient each of them estimates."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens.objectives.grpo import grpo_advantages
from lens.objectives.rloo import rloo_advantages
from tests.support.expected_gradient import expected_gradient
from tests.support.rounding import IN_A_GROUP


def test_the_baseline_is_the_mean_of_the_others():
    # Beside the right answer three are wrong, mean 0; beside a wrong one, one of three is right, mean 1/3.
    advantages = rloo_advantages(torch.tensor([[True, False, False, False]]))
    assert advantages[0].tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3], abs=IN_A_GROUP)


@given(st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=40))
def test_any_group_agrees_with_leaving_out_each_answer_in_turn(rewards):
    expected = [r - statistics.fmean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]
    advantages = rloo_advantages(torch.tensor([rewards]) > 0, rewards=torch.tensor([rewards]))
    assert advantages[0].tolist() == pytest.approx(expected, abs=4 * IN_A_GROUP)


def test_an_answer_without_others_gets_zero():
    correct = torch.tensor([[True, False, True]])
    assert rloo_advantages(correct, valid=torch.tensor([[True, False, False]])).tolist() == [[0, 0, 0]]
    assert rloo_advantages(torch.tensor([[True]])).tolist() == [[0]]


@pytest.mark.parametrize("p", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("size", [2, 5, 8])
def test_rloo_is_unbiased_and_dr_grpo_is_it_up_to_a_factor(p, size):
    # The mean reward p has the derivative 1; a baseline that knows r_i itself takes 1/G of it away.
    assert expected_gradient(rloo_advantages, p, size) == pytest.approx(1, abs=IN_A_GROUP)
    found = expected_gradient(lambda correct: grpo_advantages(correct, scale_by_std=False), p, size)
    assert found == pytest.approx(1 - 1 / size, abs=IN_A_GROUP)
