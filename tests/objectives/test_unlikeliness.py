"""The unlikeliness reward against ranks and sums done by hand, and against plain Python."""

from __future__ import annotations

import math
import statistics
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lens.objectives import grpo_advantages
from lens.objectives.unlikeliness import ranks, unlikeliness_advantages
from tests.support.rounding import IN_A_GROUP
from tests.support.rounds import check_invalid_answers_take_no_part, check_order_does_not_matter, rounds

EPS = 1e-6
T, F = True, False


def one_token(correct: list[bool], logprobs: list[float], **options) -> Tensor:
    """The advantages of one group whose answers have one token each."""
    values = torch.tensor([logprobs]).unsqueeze(-1)
    mask = torch.ones_like(values, dtype=torch.bool)
    return unlikeliness_advantages(torch.tensor([correct]), logprobs=values, mask=mask, **options)


def test_mixed_group_by_hand():
    # From the least likely: wrong -4, right -3, wrong -2, right -1, so that the right answers have ranks 3 and 1.
    # Rewards 1 - 1/4 * 3/4 = 13/16 and 1 - 1/4 * 1/4 = 15/16, and 0 twice; mean 7/16.
    # Deviations in 16ths: 6, 8, -7, -7. Variance (36 + 64 + 49 + 49)/3 = 66, over 16^2.
    advantages = one_token([T, T, F, F], [-1.0, -3.0, -2.0, -4.0])
    expected = [n / 16 / (math.sqrt(66) / 16 + EPS) for n in (6, 8, -7, -7)]
    assert advantages[0].tolist() == pytest.approx(expected, abs=IN_A_GROUP)


def test_positive_group_teaches_by_hand():
    # Rewards 1 - 1/4 * 1/2 = 7/8 and 1; deviations -1/16 and 1/16; variance 2, over 16^2.
    advantages = one_token([T, T], [-1.0, -3.0])
    expected = [n / 16 / (math.sqrt(2) / 16 + EPS) for n in (-1, 1)]
    assert advantages[0].tolist() == pytest.approx(expected, abs=IN_A_GROUP)


def test_negative_group_teaches_nothing():
    assert one_token([F, F, F], [-1.0, -3.0, -2.0]).tolist() == [[0.0] * 3]


def test_wrong_answers_have_ranks_too():
    # Among the right ones alone, the ranks would be 0 and 1 both times.
    between = one_token([T, T, F, F], [-1.0, -4.0, -2.0, -3.0])
    below = one_token([T, T, F, F], [-1.0, -2.0, -3.0, -4.0])
    assert between[0, 1] - between[0, 0] > below[0, 1] - below[0, 0]


def test_the_rank_is_of_whole_answers_or_of_their_tokens():
    # Three tokens of 0.8 make 0.512, one of 0.6 is likelier as a whole and less likely by token.
    logprobs = torch.tensor([[[0.8, 0.8, 0.8], [0.6, 0.1, 0.1]]]).log()
    mask = torch.tensor([[[T, T, T], [T, F, F]]])
    correct = torch.tensor([[T, T]])
    whole = unlikeliness_advantages(correct, logprobs=logprobs, mask=mask)
    by_token = unlikeliness_advantages(correct, logprobs=logprobs, mask=mask, probability="length_normalized")
    assert whole[0, 0] > 0 > whole[0, 1]
    assert by_token[0, 0] < 0 < by_token[0, 1]


def test_equal_probabilities_share_a_rank():
    everything = torch.ones(1, 5, dtype=torch.bool)
    values = torch.tensor([[2.0, 1.0, 2.0, 0.0, 2.0]])
    assert ranks(values, everything).tolist() == [[3.0, 1.0, 3.0, 0.0, 3.0]]
    assert ranks(values, torch.tensor([[T, T, F, F, T]]))[0, [0, 1, 4]].tolist() == [1.5, 0.0, 1.5]
    assert one_token([T, T, T], [-0.7, -0.7, -0.7]).tolist() == [[0.0] * 3]


def test_a_wrong_answer_keeps_its_reward():
    # A penalty of -1/2 for a likely wrong answer is not marked down to less than that: 1, -1/2, 0 without beta, ...
    rewards = torch.tensor([[1.0, -0.5, 0.0]])
    advantages = one_token([T, F, F], [-3.0, -1.0, -2.0], rewards=rewards)
    # ... and with it, because the right answer has rank 0. Mean 1/6; deviations in 6ths: 5, -4, -1; variance 42/2.
    expected = [n / 6 / (math.sqrt(21) / 6 + EPS) for n in (5, -4, -1)]
    assert advantages[0].tolist() == pytest.approx(expected, abs=IN_A_GROUP)


def reference(correct: list[bool], likelihoods: list[float], beta: float) -> list[float]:
    """The paper's reward and GRPO for the valid answers of one group, in plain Python."""
    size, in_order = len(correct), sorted(likelihoods)
    places = [in_order.index(value) + (in_order.count(value) - 1) / 2 for value in likelihoods]
    rewards = [right * (1 - beta * place / size) for right, place in zip(correct, places, strict=True)]
    if size < 2 or len(set(rewards)) == 1:
        return [0.0] * size
    mean = math.fsum(rewards) / size
    return [(reward - mean) / (statistics.stdev(rewards) + EPS) for reward in rewards]


@given(rounds(), st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from(["sequence", "length_normalized"]))
def test_any_group_agrees_with_plain_python(round_, beta, probability):
    advantages = round_.run(partial(unlikeliness_advantages, beta=beta, probability=probability))
    for q, valid in enumerate(round_.valid):
        rows = [row[row.isfinite()].tolist() for row in round_.logprobs[q][valid]]
        likelihoods = [math.fsum(row) / (1 if probability == "sequence" else len(row)) for row in rows]
        expected = reference(round_.correct[q][valid].tolist(), likelihoods, beta)
        assert advantages[q][valid].tolist() == pytest.approx(expected, abs=1e-5)


@given(rounds())
def test_without_beta_it_is_grpo(round_):
    advantages = round_.run(partial(unlikeliness_advantages, beta=0.0))
    assert torch.equal(advantages, grpo_advantages(round_.correct, valid=round_.valid))


@given(rounds())
def test_less_likely_right_answers_earn_more(round_):
    advantages = round_.run(unlikeliness_advantages)
    likelihoods = round_.logprobs.nansum(dim=2)
    for q, right in enumerate(round_.correct & round_.valid):
        order = likelihoods[q][right].argsort()
        rises = likelihoods[q][right][order].diff() > 0
        assert (advantages[q][right][order].diff()[rises] < 0).all()
        assert (advantages[q][right][order].diff()[~rises] == 0).all()


@given(rounds(), st.randoms(use_true_random=False))
def test_order_does_not_matter(round_, random):
    check_order_does_not_matter(lambda: unlikeliness_advantages, round_, random)


@given(rounds(), st.integers(0, 2**32 - 1))
def test_invalid_answers_take_no_part(round_, seed):
    check_invalid_answers_take_no_part(lambda: unlikeliness_advantages, round_, seed)


@pytest.mark.parametrize("options", [{"beta": -0.1}, {"beta": 1.5}, {"beta": math.nan}, {"probability": "token"}])
def test_values_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        one_token([T, F], [-1.0, -2.0], **options)
