"""ACE by hand, in plain Python, and what its factor does to a group."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lens.objectives import grpo_advantages, uniform_advantages
from lens.objectives.ace import ace_advantages
from tests.support.rounding import IN_A_GROUP
from tests.support.rounds import check_invalid_answers_take_no_part, check_order_does_not_matter, rounds

EPS = 1e-6
T, F = True, False
TWICE = math.log(math.e - 1)  # softplus of it is log(1 + e - 1) = 1, so that alpha = 1 doubles


def one_token(correct: list[bool], shifts: list[float], **options) -> Tensor:
    """The advantages of one group whose answers have one token each, of log-probability 0 under the reference."""
    shift = torch.tensor([shifts]).unsqueeze(-1)
    mask = torch.ones_like(shift, dtype=torch.bool)
    return ace_advantages(
        torch.tensor([correct]), logprobs=shift, reference_logprobs=torch.zeros_like(shift), mask=mask, **options
    )


def test_mixed_group_by_hand():
    # One right of four: mean 1/4, standard deviation 1/2. Shifts: any for the right answer; doubled; left alone; -40.
    advantages = one_token([T, F, F, F], [3.0, TWICE, 0.0, -40.0])
    right, wrong = 0.75 / (0.5 + EPS), -0.25 / (0.5 + EPS)
    expected = [right, 2 * wrong, wrong * (1 + math.log(2)), wrong]
    assert advantages.dtype == torch.float32
    assert advantages[0].tolist() == pytest.approx(expected, abs=IN_A_GROUP)
    halved = one_token([T, F, F, F], [3.0, TWICE, 0.0, -40.0], alpha=0.5)
    assert halved[0, 1].item() == pytest.approx(1.5 * wrong, abs=IN_A_GROUP)


def test_the_factor_is_linear_in_large_shifts():
    advantages = one_token([T, F], [0.0, 900.0])
    assert advantages[0, 1].item() == pytest.approx(-0.5 / (math.sqrt(0.5) + EPS) * 901, rel=IN_A_GROUP)


def test_groups_of_one_verdict_stay_zero():
    """The factor multiplies, so it gives a negative group nothing."""
    assert one_token([F, F, F], [5.0, 0.0, -5.0]).tolist() == [[0.0] * 3]
    assert one_token([T, T, T], [5.0, 0.0, -5.0], negative_penalty=3.0).tolist() == [[0.0] * 3]


def test_a_penalty_makes_negative_groups_differ_by_shift():
    advantages = one_token([F, F, F, F], [TWICE, 0.0, -40.0, TWICE], negative_penalty=0.8)
    assert advantages[0].tolist() == pytest.approx([-0.4, -0.2 * (1 + math.log(2)), -0.2, -0.4], abs=IN_A_GROUP)
    mixed = one_token([T, F], [1.0, 1.0], negative_penalty=0.8)
    assert torch.equal(mixed, one_token([T, F], [1.0, 1.0]))


def test_the_shift_is_per_token_or_of_the_whole_answer():
    correct, mask = torch.tensor([[T, F]]), torch.tensor([[[T, F], [T, T]]])
    logprobs = torch.tensor([[[-1.0, math.nan], [-1.0, -3.0]]])
    reference = torch.tensor([[[-1.0, math.nan], [-2.0, -4.0]]])  # the wrong answer gained 1 at each token
    wrong = -0.5 / (math.sqrt(0.5) + EPS)
    for shift, c in (("mean", 1.0), ("sum", 2.0)):
        advantages = ace_advantages(correct, logprobs=logprobs, reference_logprobs=reference, mask=mask, shift=shift)
        assert advantages[0, 1].item() == pytest.approx(wrong * (1 + math.log1p(math.exp(c))), abs=4 * IN_A_GROUP)


@given(rounds(), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from(["mean", "sum"]), st.sampled_from([0.0, 2.0]))
def test_any_round_agrees_with_plain_python(round_, alpha, shift, penalty):
    options = {"alpha": alpha, "shift": shift, "negative_penalty": penalty}
    advantages = round_.run(partial(ace_advantages, **options))
    before = uniform_advantages(round_.correct, alpha=penalty, valid=round_.valid)
    for a, base, policy, reference in zip(
        advantages.flatten().tolist(),
        before.flatten().tolist(),
        round_.logprobs.flatten(0, 1),
        round_.reference_logprobs.flatten(0, 1),
        strict=True,
    ):
        gains = (policy - reference)[policy.isfinite()].tolist()
        c = math.fsum(gains) / (len(gains) if shift == "mean" else 1)
        factor = 1 + alpha * math.log1p(math.exp(c)) if base < 0 else 1
        assert a == pytest.approx(base * factor, rel=1e-5)


@given(rounds())
def test_without_alpha_it_is_grpo(round_):
    advantages = round_.run(partial(ace_advantages, alpha=0.0))
    assert torch.equal(advantages, grpo_advantages(round_.correct, valid=round_.valid))


@given(rounds())
def test_a_wrong_answer_that_gained_more_costs_more(round_):
    advantages = round_.run(partial(ace_advantages, negative_penalty=1.0))
    gained = (round_.logprobs - round_.reference_logprobs).nansum(dim=2) / round_.lengths
    for q, wrong in enumerate(~round_.correct & round_.valid):
        if round_.kinds[q] != "positive":
            order = gained[q][wrong].argsort()
            rises = gained[q][wrong][order].diff() > 1e-3
            assert (advantages[q][wrong][order].diff()[rises] < 0).all()


@given(rounds(), st.randoms(use_true_random=False))
def test_order_does_not_matter(round_, random):
    check_order_does_not_matter(lambda: ace_advantages, round_, random)


@given(rounds(), st.integers(0, 2**32 - 1))
def test_invalid_answers_take_no_part(round_, seed):
    check_invalid_answers_take_no_part(lambda: partial(ace_advantages, negative_penalty=1.0), round_, seed)


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"negative_penalty": math.inf}, {"shift": "max"}])
def test_values_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        one_token([T, F], [0.0, 0.0], **options)
