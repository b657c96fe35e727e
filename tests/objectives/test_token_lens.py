"""The penalty of a negative group spread over tokens: by hand, in plain Python, and its mass."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lens.objectives import grpo_advantages, uniform_advantages
from lens.objectives.token_lens import token_lens_advantages
from tests.support.rounding import IN_A_GROUP
from tests.support.rounds import TOKENS, check_invalid_answers_take_no_part, check_order_does_not_matter, rounds

WEIGHTS = {
    "probability": lambda pi: pi,
    "surprisal": lambda pi: 5.0 if pi == 1 else min(-math.log(1 - pi), 5.0),
    "lens": lambda pi: pi / (2 - pi),
    "reversed": lambda pi: 1 - pi,
}
shapes = st.sampled_from(list(WEIGHTS))


def one_answer(probabilities: list[float], **options) -> Tensor:
    """The advantages of the tokens of a wrong answer that is alone in its group."""
    logprobs = torch.tensor([[probabilities]]).log()
    wrong, mask = torch.zeros(1, 1, dtype=torch.bool), torch.ones_like(logprobs, dtype=torch.bool)
    return token_lens_advantages(wrong, logprobs=logprobs, mask=mask, **options)[0, 0]


@pytest.mark.parametrize(
    ("shape", "g"),
    [
        ("probability", [0.5, 0.75, 0.25]),
        ("surprisal", [math.log(2), math.log(4), math.log(4 / 3)]),
        ("lens", [1 / 3, 3 / 5, 1 / 7]),
        ("reversed", [0.5, 0.25, 0.75]),
    ],
)
def test_shapes_by_hand(shape, g):
    advantages = one_answer([0.5, 0.75, 0.25], shape=shape, alpha=0.6)
    assert advantages.dtype == torch.float32
    assert advantages.tolist() == pytest.approx([-0.6 * weight * 3 / sum(g) for weight in g], abs=IN_A_GROUP)


def test_surprisal_has_an_upper_limit():
    # -log(1 - pi) of 0.9999 is 9.2, and of 1 infinite; both count 5. That of 0.99 is log(100) = 4.605.
    g = [5.0, 5.0, math.log(100)]
    advantages = one_answer([0.9999, 1.0, 0.99], shape="surprisal", alpha=1.0)
    assert advantages.tolist() == pytest.approx([-3 * weight / sum(g) for weight in g], rel=1e-5)


def test_tokens_above_the_limit_are_left_out_and_the_others_pay_for_them():
    # What is left weighs 0.5 and 0.25, over the mean of all four, 3/16.
    advantages = one_answer([0.5, 0.999, 1.0, 0.25], alpha=0.6, max_probability=0.99)
    assert advantages.tolist() == pytest.approx([-0.6 * 8 / 3, 0.0, 0.0, -0.6 * 4 / 3], abs=IN_A_GROUP)


def test_the_limit_itself_is_not_above_it():
    assert torch.equal(one_answer([1.0, 0.5], max_probability=1.0), one_answer([1.0, 0.5]))


@pytest.mark.parametrize("options", [{"max_probability": 0.5}, {"shape": "reversed"}])
def test_an_answer_of_which_nothing_is_left_gets_zero(options):
    assert one_answer([1.0, 1.0], **options).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("shape", WEIGHTS)
def test_a_probability_that_rounding_took_above_one_counts_as_one(shape):
    logprobs = torch.tensor([[[1e-6, -1.0]]])
    wrong, mask = torch.zeros(1, 1, dtype=torch.bool), torch.ones(1, 1, 2, dtype=torch.bool)
    advantages = token_lens_advantages(wrong, logprobs=logprobs, mask=mask, shape=shape)[0, 0]
    assert torch.equal(
        advantages, token_lens_advantages(wrong, logprobs=logprobs.clamp(max=0), mask=mask, shape=shape)[0, 0]
    )
    assert advantages.isfinite().all() and (advantages <= 0).all()


@given(rounds(), shapes, st.sampled_from([None, 0.9, 0.5]))
def test_any_round_agrees_with_plain_python(round_, shape, limit):
    advantages = round_.run(partial(token_lens_advantages, alpha=2.0, shape=shape, max_probability=limit))
    of_grpo = grpo_advantages(round_.correct, valid=round_.valid)
    for q, kind in enumerate(round_.kinds):
        for i in range(round_.correct.shape[1]):
            mask = round_.mask[q, i]
            actual = advantages[q, i][mask].tolist()
            if kind != "negative" or not round_.valid[q, i]:
                assert actual == [of_grpo[q, i].item()] * len(actual)
                continue
            pi = [math.exp(value) for value in round_.logprobs[q, i][mask].tolist()]
            g = [WEIGHTS[shape](p) if limit is None or p <= limit else 0.0 for p in pi]
            a = 2.0 / round_.valid[q].sum().item()
            expected = [-a * weight * len(g) / sum(g) if sum(g) else 0.0 for weight in g]
            assert actual == pytest.approx(expected, rel=TOKENS * IN_A_GROUP, abs=IN_A_GROUP)


@given(rounds(), shapes)
def test_an_answer_s_mean_is_that_of_uniform(round_, shape):
    advantages = round_.run(partial(token_lens_advantages, alpha=2.0, shape=shape)).double()
    expected = uniform_advantages(round_.correct, alpha=2.0, valid=round_.valid).double()
    all_certain = (round_.logprobs.nan_to_num(nan=0.0) == 0).all(dim=2)
    expected[all_certain & (expected < 0) & torch.tensor(shape == "reversed")] = 0  # nothing is left of these
    negative = [q for q, kind in enumerate(round_.kinds) if kind == "negative"]
    means = advantages.sum(dim=2) / round_.lengths
    torch.testing.assert_close(means[negative], expected[negative], atol=4 * TOKENS * IN_A_GROUP, rtol=0)


@pytest.mark.parametrize("shape", WEIGHTS)
@pytest.mark.parametrize("probability", [0.01, 0.5, 0.99])
def test_tokens_of_one_probability_share_the_penalty_alike(shape, probability):
    assert one_answer([probability] * 7, shape=shape, alpha=0.5).tolist() == pytest.approx([-0.5] * 7, abs=IN_A_GROUP)


@pytest.mark.parametrize("shape", ["probability", "surprisal", "lens"])
def test_likely_tokens_pay_more_and_in_the_control_less(shape):
    rising = [0.1, 0.3, 0.6, 0.9]
    assert (one_answer(rising, shape=shape).diff() < 0).all()
    assert (one_answer(rising, shape="reversed").diff() > 0).all()


@given(rounds(), st.randoms(use_true_random=False), shapes)
def test_order_does_not_matter(round_, random, shape):
    check_order_does_not_matter(lambda: partial(token_lens_advantages, shape=shape), round_, random)


@given(rounds(), st.integers(0, 2**32 - 1), shapes)
def test_invalid_answers_take_no_part(round_, seed, shape):
    check_invalid_answers_take_no_part(lambda: partial(token_lens_advantages, shape=shape), round_, seed)


@pytest.mark.parametrize(
    "options", [{"alpha": -1.0}, {"shape": "entropy"}, {"max_probability": 1.5}, {"max_probability": -0.1}]
)
def test_values_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        one_answer([0.5], **options)
