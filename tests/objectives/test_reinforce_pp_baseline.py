"""REINFORCE++ with baseline: token by token in plain Python, and the accidental sign of groups of one kind."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens.objectives.reinforce_pp_baseline import reinforce_pp_baseline_advantages
from tests.support.rounding import IN_A_GROUP, rounding

EPS = 1e-8
# Right answers of two tokens and wrong ones of four; beside them a group of wrong ones.
CORRECT = torch.tensor([[True, True, False, False], [False] * 4])
LENGTHS = torch.tensor([[2, 2, 4, 4], [4] * 4])


def token_by_token(rewards: list[list[float]], lengths: list[list[int]], *, shift_mean: bool) -> list[list[float]]:
    """Whitening as the paper has it: one number a token in one long list."""
    centred = [[r - statistics.fmean(group) for r in group] for group in rewards]
    tokens = [
        a
        for row, counts in zip(centred, lengths, strict=True)
        for a, n in zip(row, counts, strict=True)
        for _ in range(n)
    ]
    mean, variance = statistics.fmean(tokens), statistics.variance(tokens)
    return [[(a - mean * shift_mean) / math.sqrt(variance + EPS) for a in row] for row in centred]


def test_long_wrong_answers_give_a_group_of_wrong_ones_a_reward():
    # Of 28 tokens 4 have 1/2, 8 have -1/2 and 16 have 0: mean -2/28, sum of squares 12/4 - 28/14^2, over 27.
    sigma = math.sqrt((3 - 28 / 196) / 27 + EPS)
    advantages = reinforce_pp_baseline_advantages(CORRECT, lengths=LENGTHS)
    right, wrong, alone = (0.5 + 1 / 14) / sigma, (-0.5 + 1 / 14) / sigma, 1 / 14 / sigma
    expected = torch.tensor([[right, right, wrong, wrong], [alone] * 4])
    torch.testing.assert_close(advantages, expected, atol=IN_A_GROUP, rtol=IN_A_GROUP)
    assert alone == pytest.approx(0.22, abs=0.005)


def test_a_group_of_right_answers_gets_what_a_group_of_wrong_ones_gets():
    turned = CORRECT.clone()
    turned[1] = True
    advantages = reinforce_pp_baseline_advantages(CORRECT, lengths=LENGTHS)
    assert torch.equal(reinforce_pp_baseline_advantages(turned, lengths=LENGTHS), advantages)


def test_without_the_shift_groups_of_one_kind_get_exactly_zero():
    advantages = reinforce_pp_baseline_advantages(CORRECT, lengths=LENGTHS, shift_mean=False)
    value = 0.5 / math.sqrt((3 - 28 / 196) / 27 + EPS)
    expected = torch.tensor([[value, value, -value, -value], [0.0] * 4])
    torch.testing.assert_close(advantages, expected, atol=IN_A_GROUP, rtol=IN_A_GROUP)
    assert advantages[1].tolist() == [0] * 4


def test_answers_of_equal_length_leave_nothing_to_shift():
    # Three rewards of thirds do not add up to exactly 0; what is left of the mean is rounding, and teaches nothing.
    correct = torch.tensor([[True, False, False], [False] * 3, [True, True, False], [True] * 3])
    advantages = reinforce_pp_baseline_advantages(correct, lengths=torch.full((4, 3), 7))
    assert advantages[[1, 3]].tolist() == [[0] * 3] * 2
    assert (advantages[[0, 2]] != 0).all()


@given(st.integers(1, 4), st.integers(2, 6), st.booleans(), st.data())
def test_any_round_agrees_with_a_list_of_its_tokens(questions, size, shift_mean, data):
    def table(values: st.SearchStrategy) -> list[list]:
        row = st.lists(values, min_size=size, max_size=size)
        return data.draw(st.lists(row, min_size=questions, max_size=questions))

    eighths = table(st.integers(-8, 8))
    rewards, lengths = [[n / 8 for n in row] for row in eighths], table(st.integers(1, 30))
    expected = token_by_token(rewards, lengths, shift_mean=shift_mean)
    values = torch.tensor(rewards)
    found = reinforce_pp_baseline_advantages(
        values > 0, rewards=values, lengths=torch.tensor(lengths), shift_mean=shift_mean
    )
    tolerance = rounding("float32", 4 * 6 * 30)
    torch.testing.assert_close(found, torch.tensor(expected), atol=tolerance, rtol=tolerance)


def test_a_round_without_a_mixed_group_gets_exactly_zero():
    correct = torch.tensor([[True] * 3, [False] * 3])
    lengths = torch.tensor([[1, 2, 3], [9, 8, 7]])
    assert reinforce_pp_baseline_advantages(correct, lengths=lengths).tolist() == [[0] * 3] * 2
    nobody = torch.zeros(2, 3, dtype=torch.bool)
    assert reinforce_pp_baseline_advantages(correct, lengths=lengths, valid=nobody).tolist() == [[0] * 3] * 2
