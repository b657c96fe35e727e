"""Kinds of groups, and centring that leaves no rounding behind."""

from __future__ import annotations

import pytest
import torch

from lens.objectives.groups import centre, group_kinds, group_mean, group_std, normalise

T, F = True, False


def test_each_group_has_one_kind():
    kinds = group_kinds(torch.tensor([[F, F, F], [T, F, F], [F, T, T], [T, T, T]]))
    assert kinds.negative.tolist() == [[T], [F], [F], [F]]
    assert kinds.mixed.tolist() == [[F], [T], [T], [F]]
    assert kinds.positive.tolist() == [[F], [F], [F], [T]]


def test_valid_answers_decide_the_kind_and_without_any_there_is_none():
    correct = torch.tensor([[T, F], [T, F], [T, F], [T, F]])
    kinds = group_kinds(correct, torch.tensor([[T, T], [F, T], [T, F], [F, F]]))
    assert torch.cat(kinds, dim=1).tolist() == [[F, T, F], [T, F, F], [F, F, T], [F, F, F]]  # negative, mixed, positive


def test_mean_and_sample_deviation_are_over_valid_answers():
    rewards = torch.tensor([[1.0, 9.0, 2.0, 6.0], [4.0, 5.0, 6.0, 7.0], [1.0, 2.0, 3.0, 4.0]])
    valid = torch.tensor([[T, F, T, T], [F, T, F, F], [F, F, F, F]])
    assert group_mean(rewards, valid).tolist() == [[3], [5], [0]]
    assert group_std(centre(rewards, valid), valid).tolist() == [[7**0.5], [0], [0]]  # (4 + 1 + 9) / 2


@pytest.mark.parametrize("size", [3, 6, 7, 10, 49])
def test_equal_rewards_are_exactly_zero_once_centred(size):
    values = torch.rand(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rewards, everything = values.expand(-1, size), torch.ones(500, size, dtype=torch.bool)
    assert (rewards.sum(dim=1, keepdim=True) / size != values).any()  # there is a rounding to be left behind
    assert (centre(rewards, everything) == 0).all()
    assert (normalise(rewards, everything, eps=1e-6) == 0).all()


def test_small_differences_survive_the_centring():
    centred = centre(torch.tensor([[0.25, 0.25 + 2e-9]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool))
    assert centred[0].tolist() == pytest.approx([-1e-9, 1e-9], rel=1e-6)
