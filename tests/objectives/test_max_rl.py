"""MaxRL: hand values, the series that it is the gradient of, and its bounds."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lens.objectives.max_rl import max_rl_advantages
from tests.support.expected_gradient import expected_gradient
from tests.support.rounding import IN_A_GROUP

EPS = 1e-6


def test_groups_by_hand():
    correct = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    expected = [
        [0.75 / (0.25 + EPS), *[-0.25 / (0.25 + EPS)] * 3],  # about 3 and -1
        [0.25 / (0.75 + EPS), 0.25 / (0.75 + EPS), -0.75 / (0.75 + EPS), 0.25 / (0.75 + EPS)],  # about 1/3 and -1
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    torch.testing.assert_close(max_rl_advantages(correct), torch.tensor(expected), atol=IN_A_GROUP, rtol=IN_A_GROUP)


@given(st.integers(2, 40), st.data())
def test_every_wrong_answer_gets_minus_one_and_right_ones_the_odds(size, data):
    right = data.draw(st.integers(1, size - 1))
    advantages = max_rl_advantages(torch.arange(size)[None] < right, eps=0.0)[0].tolist()
    assert advantages[right:] == pytest.approx([-1] * (size - right), abs=IN_A_GROUP)
    assert advantages[:right] == pytest.approx([(size - right) / right] * right, rel=IN_A_GROUP)
    assert max(advantages) <= size - 1


@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_in_expectation_it_is_the_gradient_of_log_p_cut_after_size_minus_one_terms(p, size):
    # log p = -sum_k (1 - p)^k / k has the derivative sum_k (1 - p)^(k - 1).
    derivative = sum((1 - p) ** (k - 1) for k in range(1, size))
    found = expected_gradient(functools.partial(max_rl_advantages, eps=0.0), p, size)
    assert found == pytest.approx(derivative, rel=2 * IN_A_GROUP)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_a_penalty_of_one_in_negative_groups_brings_the_next_term_back(p):
    def with_penalty(correct: Tensor) -> Tensor:
        return torch.where(correct.any(dim=1, keepdim=True), max_rl_advantages(correct, eps=0.0), -1.0)

    derivative = sum((1 - p) ** (k - 1) for k in range(1, 9))
    assert expected_gradient(with_penalty, p, size=8) == pytest.approx(derivative, rel=2 * IN_A_GROUP)


def test_rewards_between_zero_and_one_are_divided_by_their_mean():
    rewards = torch.tensor([[0.5, 0.25, 0.0, 0.25]])
    advantages = max_rl_advantages(rewards > 0.3, rewards=rewards, eps=0.0)
    assert advantages.tolist() == [[1, 0, -1, 0]]  # the mean is 1/4


def test_a_mean_of_zero_or_below_teaches_nothing():
    rewards = torch.tensor([[1.0, -1.0], [1.0, -1.5], [0.0, -0.5]])
    advantages = max_rl_advantages(rewards > 0, rewards=rewards, eps=0.0)
    assert advantages.tolist() == [[0, 0]] * 3
