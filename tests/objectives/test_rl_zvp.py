"""RL-ZVP against its equation 5, by hand and in plain Python."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens.objectives import grpo_advantages
from lens.objectives.rl_zvp import rl_zvp_advantages
from tests.support.rounding import IN_A_GROUP
from tests.support.rounds import check_invalid_answers_take_no_part, check_order_does_not_matter, rounds

T, F = True, False


def test_each_kind_of_group_by_hand():
    correct = torch.tensor([[F, F], [T, T], [T, F]])
    entropies = torch.tensor([[[2.0, 0.5, 1.0], [3.0, 3.0, 9.0]]] * 3)
    mask = torch.tensor([[[T, T, T], [T, T, F]]] * 3)
    advantages = rl_zvp_advantages(correct, entropies=entropies, mask=mask, alpha=0.5)
    half = 0.5 / (math.sqrt(1 / 2) + 1e-6)  # one of two right: deviations of 1/2, variance 2 * 1/4
    expected = [
        [[0.0, -0.75, -0.5], [0.0, 0.0, 0.0]],  # the maxima are 2 and 3, each of its own answer
        [[1.0, 0.25, 0.5], [1.5, 1.5, 0.0]],
        [[half, half, half], [-half, -half, 0.0]],
    ]
    assert advantages.dtype == torch.float32
    torch.testing.assert_close(advantages, torch.tensor(expected), atol=IN_A_GROUP, rtol=0)


@given(rounds(), st.sampled_from([0.0, 0.1, 2.0]))
def test_any_round_agrees_with_plain_python(round_, alpha):
    advantages = round_.run(partial(rl_zvp_advantages, alpha=alpha))
    of_grpo = grpo_advantages(round_.correct, valid=round_.valid)
    for q, kind in enumerate(round_.kinds):
        for i in range(round_.correct.shape[1]):
            entropies = round_.entropies[q, i][round_.mask[q, i]].tolist()
            expected = {
                "negative": [-alpha * (max(entropies) - h) for h in entropies],
                "positive": [alpha * h for h in entropies],
                "mixed": [of_grpo[q, i].item()] * len(entropies),
                "none": [0.0] * len(entropies),
            }[kind]
            expected = expected if round_.valid[q, i] else [0.0] * len(entropies)
            assert advantages[q, i][round_.mask[q, i]].tolist() == pytest.approx(expected, abs=IN_A_GROUP)


@given(rounds())
def test_a_wrong_answer_keeps_its_most_open_token(round_):
    """The token of the highest entropy gets exactly 0, and so does an answer of one entropy throughout."""
    advantages = round_.run(rl_zvp_advantages)
    for q, kind in enumerate(round_.kinds):
        if kind == "negative":
            assert (advantages[q] <= 0).all()
            highest = round_.entropies[q].nan_to_num(nan=-1.0).argmax(dim=1, keepdim=True)
            assert (advantages[q].gather(1, highest) == 0).all()


def test_only_mixed_groups_see_shaped_rewards():
    rewards = torch.tensor([[0.0, -0.5], [1.0, 0.5], [0.5, 0.0]])
    entropies, mask = torch.ones(3, 2, 1), torch.ones(3, 2, 1, dtype=torch.bool)
    correct = torch.tensor([[F, F], [T, T], [T, F]])
    advantages = rl_zvp_advantages(correct, entropies=entropies, mask=mask, rewards=rewards)[..., 0]
    quarter = 0.25 / (math.sqrt(1 / 8) + 1e-6)  # deviations of 1/4, variance 2 * 1/16
    torch.testing.assert_close(advantages, torch.tensor([[0.0, 0.0], [0.1, 0.1], [quarter, -quarter]]))


@given(rounds(), st.randoms(use_true_random=False))
def test_order_does_not_matter(round_, random):
    check_order_does_not_matter(lambda: rl_zvp_advantages, round_, random)


@given(rounds(), st.integers(0, 2**32 - 1))
def test_invalid_answers_take_no_part(round_, seed):
    check_invalid_answers_take_no_part(lambda: rl_zvp_advantages, round_, seed)


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_values_that_make_no_sense_are_refused(alpha):
    ones = torch.ones(1, 2, 1)
    with pytest.raises(ValueError, match="alpha"):
        rl_zvp_advantages(torch.tensor([[T, F]]), entropies=ones, mask=ones.bool(), alpha=alpha)
