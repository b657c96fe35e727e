"""The kinds of groups and the share of signal, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lens.integrations import group_advantages, measure_groups

IDS = [0, 1, 2, 0, 1, 2, 0, 1, 3]
REWARDS = torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 0, math.nan])  # mixed, negative, positive; one without a reward
LENGTHS = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9])
ADVANTAGES = torch.tensor([0.5, -0.25, 0, -1, -0.5, 0, 0.5, 0, 0])


def test_kinds_and_share():
    metrics = measure_groups(ADVANTAGES, REWARDS, IDS)
    assert metrics == {
        "groups/frac_negative": 0.25,
        "groups/frac_mixed": 0.25,
        "groups/frac_positive": 0.25,
        "groups/frac_silent": 0.5,
        "groups/advantage_share_negative": 0.75 / 2.75,
    }


def test_under_a_mean_over_tokens_an_answer_weighs_as_many_times_its_tokens():
    metrics = measure_groups(ADVANTAGES, REWARDS, IDS, lengths=LENGTHS, token_mean=True)
    negative = 0.25 * 2 + 0.5 * 5
    assert metrics["groups/advantage_share_negative"] == negative / (negative + 0.5 * 1 + 1 * 4 + 0.5 * 7)


def test_of_tokens_the_mean_counts_and_what_is_left_out_does_not():
    tokens = torch.zeros(9, 9)
    tokens[1, :2], tokens[3, :4], tokens[0] = -0.25, -1, math.nan
    metrics = measure_groups(tokens, REWARDS, IDS, lengths=LENGTHS)
    assert metrics["groups/advantage_share_negative"] == 0.2
    assert metrics["groups/frac_silent"] == 0.5


def test_without_a_signal_the_share_is_0():
    assert measure_groups(torch.zeros(9), REWARDS, IDS)["groups/advantage_share_negative"] == 0


def test_it_counts_what_group_advantages_makes():
    advantages = group_advantages(REWARDS[:8], IDS[:8], torch.linspace(-2, -0.1, 8))
    share = measure_groups(advantages, REWARDS[:8], IDS[:8])["groups/advantage_share_negative"]
    negative = advantages[[1, 4, 7]].abs().sum() / advantages.abs().sum()
    assert share == pytest.approx(negative.item(), rel=1e-6) and share > 0


@pytest.mark.parametrize("arguments", [{"token_mean": True}, {"advantages": torch.zeros(9, 9)}])
def test_lengths_that_are_missing_are_named(arguments):
    with pytest.raises(ValueError, match="lengths: the numbers of tokens"):
        measure_groups(**{"advantages": ADVANTAGES, "rewards": REWARDS, "group_ids": IDS} | arguments)
