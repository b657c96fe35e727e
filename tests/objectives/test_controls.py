"""The controls: what they share with LENS and GRPO, and the one thing in which each differs."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from lens.objectives import grpo_advantages, lens_advantages, shuffled_advantages, uniform_advantages
from tests.support.rounding import IN_A_GROUP

GROUP_SIZE = 6


@pytest.fixture
def groups() -> tuple[Tensor, Tensor, Tensor]:
    """correct, confidence and valid of 40 groups; the first ten are negative, and one answer in five is invalid."""
    generator = torch.Generator().manual_seed(1)
    correct = torch.rand(40, GROUP_SIZE, generator=generator) < 0.4
    correct[:10] = False
    confidence = 0.01 + 0.98 * torch.rand(40, GROUP_SIZE, generator=generator)
    valid = torch.rand(40, GROUP_SIZE, generator=generator) < 0.8
    return correct, confidence, valid


@pytest.mark.parametrize("alpha", [0.25, 2.0])
def test_uniform_gives_every_answer_of_a_negative_group_the_same(alpha):
    advantages = uniform_advantages(torch.tensor([[False] * 4]), alpha=alpha)
    assert advantages.dtype == torch.float32
    assert advantages.tolist() == [[-alpha / 4] * 4]


def test_uniform_counts_valid_answers_only():
    correct = torch.tensor([[False, True, False, False], [True, False, False, False], [False] * 4])
    valid = torch.tensor([[True, False, True, True], [False, True, True, False], [False] * 4])
    advantages = uniform_advantages(correct, alpha=0.6, valid=valid)
    torch.testing.assert_close(advantages, torch.tensor([[-0.2, 0, -0.2, -0.2], [0, -0.3, -0.3, 0], [0] * 4]))


def test_uniform_is_grpo_elsewhere(groups):
    correct, confidence, valid = groups
    negative = ~(correct & valid).any(dim=1)
    assert 10 <= negative.sum() < 40
    advantages = uniform_advantages(correct, confidence, valid=valid)
    assert torch.equal(advantages[~negative], grpo_advantages(correct, valid=valid)[~negative])
    assert (advantages[negative] <= 0).all()


def test_shuffled_keeps_every_penalty_of_a_group(groups):
    correct, confidence, valid = groups
    torch.manual_seed(0)
    shuffled = shuffled_advantages(correct, confidence, valid=valid)
    plain = lens_advantages(correct, confidence, valid=valid)
    right, wrong = correct & valid, ~correct & valid
    torch.testing.assert_close(shuffled[right], plain[right], atol=IN_A_GROUP, rtol=IN_A_GROUP)
    for row, members in enumerate(wrong):
        penalties = shuffled[row, members].sort().values
        torch.testing.assert_close(penalties, plain[row, members].sort().values, atol=IN_A_GROUP, rtol=IN_A_GROUP)
    assert (shuffled[~valid] == 0).all()
    moved = ((shuffled - plain).abs() > IN_A_GROUP).any(dim=1)
    assert moved[wrong.sum(dim=1) > 2].float().mean() > 0.8  # of n! orders, one moves nothing


def test_shuffled_gives_every_order_the_same_chance():
    torch.manual_seed(0)
    correct = torch.tensor([[False, True, False, False]]).repeat(6000, 1)
    confidence = torch.tensor([[0.2, 0.5, 0.4, 0.8]]).repeat(6000, 1)
    advantages = shuffled_advantages(correct, confidence)
    by_penalty = [tuple(row) for row in advantages[:, [0, 2, 3]].argsort(dim=1).tolist()]
    counts = [by_penalty.count(order) for order in itertools.permutations(range(3))]
    assert sum(counts) == 6000 and chisquare(counts).pvalue > 0.001
    assert (advantages[:, 1] == advantages[0, 1]).all()


def test_shuffled_never_takes_the_confidence_of_another_answer():
    # Were 0.99, of a right answer, or 0.95, of an invalid one, to reach a wrong answer, D and with it all would change.
    torch.manual_seed(0)
    correct = torch.tensor([[True, False, False, False]]).repeat(500, 1)
    confidence = torch.tensor([[0.99, 0.3, 0.3, 0.95]]).repeat(500, 1)
    valid = torch.tensor([[True, True, True, False]]).repeat(500, 1)
    plain = lens_advantages(correct, confidence, valid=valid)
    assert torch.equal(shuffled_advantages(correct, confidence, valid=valid), plain)


def test_shuffled_is_lens_where_wrong_answers_are_equally_confident(groups):
    correct, confidence, valid = groups
    confidence = torch.where(correct, confidence, 0.6)
    shuffled = shuffled_advantages(correct, confidence, alpha=0.7, valid=valid)
    assert torch.equal(shuffled, lens_advantages(correct, confidence, alpha=0.7, valid=valid))


def test_shuffled_follows_the_global_seed_and_leaves_its_input_alone(groups):
    correct, confidence, _ = groups
    before = confidence.clone()
    torch.manual_seed(3)
    first = shuffled_advantages(correct, confidence)
    other = shuffled_advantages(correct, confidence)
    torch.manual_seed(3)
    assert torch.equal(first, shuffled_advantages(correct, confidence))
    assert not torch.equal(first, other)
    assert torch.equal(confidence, before)
