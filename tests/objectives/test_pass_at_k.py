"""Pass@k training: hand values, every set of k answers one by one, and k = 1."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch

from lens.objectives.pass_at_k import pass_at_k_advantages
from tests.support.rounding import IN_A_GROUP

EPS = 1e-6


def by_enumeration(group: list[bool], k: int) -> list[float]:
    """The mean of (reward - mean) / (std + eps) over the sets of k answers that an answer is in."""
    sets = list(itertools.combinations(range(len(group)), k))
    rewards = [float(any(group[i] for i in members)) for members in sets]
    mean, deviation = statistics.fmean(rewards), statistics.pstdev(rewards)
    return [
        (statistics.fmean(r for r, members in zip(rewards, sets, strict=True) if i in members) - mean)
        / (deviation + EPS)
        for i in range(len(group))
    ]


def test_one_of_four_right_by_hand():
    # Of six pairs three have the right answer: mean 1/2, std 1/2. A wrong answer is in three pairs, one of them with
    # it: mean 1/3. The right one's pairs all have reward 1.
    advantages = pass_at_k_advantages(torch.tensor([[False, True, False, False]]), k=2)
    wrong, right = (1 / 3 - 1 / 2) / (1 / 2 + EPS), (1 - 1 / 2) / (1 / 2 + EPS)
    assert advantages[0].tolist() == pytest.approx([wrong, right, wrong, wrong], abs=IN_A_GROUP)


@pytest.mark.parametrize("size", range(1, 9))
def test_every_group_agrees_with_all_its_sets(size):
    groups = [[i < right for i in range(size)] for right in range(size + 1)]
    for k in range(1, size + 1):
        expected = torch.tensor([by_enumeration(group, k) for group in groups])
        found = pass_at_k_advantages(torch.tensor(groups), k=k)
        torch.testing.assert_close(found, expected, atol=IN_A_GROUP, rtol=2 * IN_A_GROUP)


def test_invalid_answers_are_in_no_set():
    group, valid = [True, True, False, False, False, False], [True, False, True, True, False, True]
    expected = iter(by_enumeration([True, False, False, False], 3))
    found = pass_at_k_advantages(torch.tensor([group]), k=3, valid=torch.tensor([valid]))
    assert found[0].tolist() == pytest.approx([next(expected) if v else 0 for v in valid], abs=IN_A_GROUP)


def test_k_of_one_is_grpo_with_the_population_standard_deviation():
    group = [1, 0, 0, 1, 0, 0, 0]
    mean, deviation = statistics.fmean(group), statistics.pstdev(group)
    expected = [(r - mean) / (deviation + EPS) for r in group]
    found = pass_at_k_advantages(torch.tensor([group], dtype=torch.bool), k=1)
    assert found[0].tolist() == pytest.approx(expected, rel=IN_A_GROUP)


def test_groups_in_which_every_set_has_the_same_reward_get_exactly_zero():
    # No right answer, or fewer than k wrong ones, or fewer than k valid ones. A right answer's 0 stays 0.
    correct = torch.tensor([[False] * 5, [True, True, True, False, False], [True, False, False, False, True]])
    valid = torch.tensor([[True] * 5, [True] * 5, [True, True, False, False, False]])
    assert (pass_at_k_advantages(correct, k=3, valid=valid) == 0).all()


@pytest.mark.parametrize("k", [0, -1, 5])
def test_a_set_larger_than_the_group_is_refused(k):
    with pytest.raises(ValueError, match="at most the 4 answers of a group"):
        pass_at_k_advantages(torch.tensor([[True, False, False, False]]), k=k)
