"""GRPO's advantages against sums done by hand and against plain Python."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens.objectives import grpo_advantages
from tests.support.rounding import IN_A_GROUP

EPS = 1e-6
HALF_RIGHT = 0.5 / (math.sqrt(1 / 3) + EPS)  # mean 1/2, deviations +-1/2, variance 4 * (1/4) / 3 = 1/3

# correct and advantages of one group
BY_HAND = {
    # mean 1/4, deviations 3/4 and three times -1/4, variance (9 + 3)/16 / 3 = 1/4, standard deviation 1/2
    "one of four right": ([1, 0, 0, 0], [0.75 / (0.5 + EPS), *[-0.25 / (0.5 + EPS)] * 3]),
    "two of four right": ([0, 1, 1, 0], [-HALF_RIGHT, HALF_RIGHT, HALF_RIGHT, -HALF_RIGHT]),
    # mean 3/4, deviations 1/4 three times and -3/4: the first group with its signs turned
    "one mistake": (
        [1, 1, 0, 1],
        [0.5 / (1 + 2 * EPS), 0.5 / (1 + 2 * EPS), -1.5 / (1 + 2 * EPS), 0.5 / (1 + 2 * EPS)],
    ),
    "negative": ([0, 0, 0, 0], [0, 0, 0, 0]),
    "positive": ([1, 1, 1, 1], [0, 0, 0, 0]),
}


@pytest.mark.parametrize(("correct", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_group_by_hand(correct, expected):
    advantages = grpo_advantages(torch.tensor([correct], dtype=torch.bool))
    assert advantages.dtype == torch.float32
    assert advantages[0].tolist() == pytest.approx(expected, abs=IN_A_GROUP)


def test_groups_of_a_batch_do_not_meet():
    correct, expected = zip(*BY_HAND.values(), strict=True)
    advantages = grpo_advantages(torch.tensor(correct, dtype=torch.bool))
    torch.testing.assert_close(advantages, torch.tensor(expected), atol=IN_A_GROUP, rtol=0)


def test_without_the_standard_deviation_rewards_are_only_centred():
    advantages = grpo_advantages(torch.tensor([[True, False, False, False]]), scale_by_std=False)
    assert advantages[0].tolist() == [0.75, -0.25, -0.25, -0.25]


def test_eps_is_added_to_the_standard_deviation():
    advantages = grpo_advantages(torch.tensor([[True, False, False, False]]), eps=0.5)
    assert advantages[0].tolist() == [0.75, -0.25, -0.25, -0.25]  # divided by 1/2 + 1/2


def test_rewards_take_the_place_of_verdicts():
    # Mean 1/2, deviations 1, -1/2, -1/2 and 0, variance (1 + 1/4 + 1/4) / 3 = 1/2.
    rewards, correct = torch.tensor([[1.5, 0.0, 0.0, 0.5]]), torch.tensor([[False, True, False, True]])
    expected = [deviation / (math.sqrt(0.5) + EPS) for deviation in (1, -0.5, -0.5, 0)]
    assert grpo_advantages(correct, rewards=rewards)[0].tolist() == pytest.approx(expected, abs=IN_A_GROUP)


def test_rewards_of_zero_and_one_give_the_verdicts_own_advantages_to_the_last_bit():
    correct = torch.rand(200, 7, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.equal(grpo_advantages(correct, rewards=correct.float()), grpo_advantages(correct))


def test_invalid_answers_are_out_of_mean_and_deviation():
    # Of [1, 0, 0] the mean is 1/3, the deviations are 2/3, -1/3, -1/3 and the variance is (4 + 1 + 1)/9 / 2 = 1/3.
    right, wrong = 2 / 3 / (math.sqrt(1 / 3) + EPS), -1 / 3 / (math.sqrt(1 / 3) + EPS)
    correct = torch.tensor([[True, True, False, False], [False, True, False, False]])
    valid = torch.tensor([[False, True, True, True], [True, True, False, True]])
    expected = [[0, right, wrong, wrong], [wrong, right, 0, wrong]]
    torch.testing.assert_close(grpo_advantages(correct, valid=valid), torch.tensor(expected), atol=IN_A_GROUP, rtol=0)


def test_groups_with_one_valid_answer_or_none_teach_nothing():
    correct = torch.tensor([[True, False, False], [False, True, True], [True, False, True]])
    valid = torch.tensor([[True, False, False], [True, False, False], [False, False, False]])
    assert grpo_advantages(correct, valid=valid).tolist() == [[0.0] * 3] * 3


@given(st.integers(1, 200), st.booleans(), st.booleans())
def test_equal_rewards_give_exactly_zero_in_groups_of_any_size(size, reward, scale_by_std):
    advantages = grpo_advantages(torch.full((2, size), reward), scale_by_std=scale_by_std)
    assert advantages.tolist() == [[0.0] * size] * 2


@given(st.lists(st.booleans(), min_size=2, max_size=40))
def test_any_group_agrees_with_plain_python(rewards):
    mean, deviation = statistics.fmean(rewards), statistics.stdev(rewards)
    expected = [(reward - mean) / (deviation + EPS) for reward in rewards]
    advantages = grpo_advantages(torch.tensor([rewards]))[0].tolist()
    assert advantages == pytest.approx(expected, abs=IN_A_GROUP, rel=IN_A_GROUP)
    assert sum(advantages) == pytest.approx(0, abs=40 * IN_A_GROUP)
    if len(set(rewards)) == 2:
        assert all((advantage > 0) == reward for advantage, reward in zip(advantages, rewards, strict=True))
