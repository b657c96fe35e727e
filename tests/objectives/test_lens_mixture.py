"""LENS's shape without its centring: by hand, against LENS and uniform, and its cells of equal mass."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lens.objectives import grpo_advantages, lens_advantages, uniform_advantages
from lens.objectives.lens_mixture import lens_mixture_advantages
from tests.support.rounding import IN_A_GROUP
from tests.support.rounds import check_invalid_answers_take_no_part, check_order_does_not_matter, rounds

WRONG = torch.zeros(1, 4, dtype=torch.bool)
CONFIDENCE = torch.tensor([[0.8, 0.4, 0.4, 0.2]])
# z is 1, 1/2, 1/2, 1/4, and w = z/(2 - z) is 1, 1/3, 1/3, 1/7: in 21sts 21, 7, 7, 3, with mean 38/4. So w over its
# mean is 84/38, 28/38, 28/38, 12/38.
SHAPE = [42 / 19, 14 / 19, 14 / 19, 6 / 19]
A = 0.5 / 4  # alpha / G


def test_negative_group_by_hand():
    advantages = lens_mixture_advantages(WRONG, CONFIDENCE, alpha=0.5)
    assert advantages.dtype == torch.float32
    assert advantages[0].tolist() == pytest.approx([-A * s for s in SHAPE], abs=IN_A_GROUP)
    half = lens_mixture_advantages(WRONG, CONFIDENCE, alpha=0.5, lam=0.5)
    assert half[0].tolist() == pytest.approx([-A * (0.5 + 0.5 * s) for s in SHAPE], abs=IN_A_GROUP)


def test_temper_by_hand():
    # Squares of w in 441sts: 441, 49, 49, 9, with mean 137.
    advantages = lens_mixture_advantages(WRONG, CONFIDENCE, alpha=0.5, temper=2.0)
    assert advantages[0].tolist() == pytest.approx([-A * n / 137 for n in (441, 49, 49, 9)], abs=IN_A_GROUP)


def test_a_great_temper_leaves_the_most_confident_alone():
    advantages = lens_mixture_advantages(WRONG, CONFIDENCE, alpha=0.5, temper=1e6)
    assert advantages[0].tolist() == pytest.approx([-4 * A, 0, 0, 0], abs=IN_A_GROUP)


def test_centred_by_hand():
    # w over its mean, less 1, in 19ths: 23, -5, -5, -13. The mean of the sizes is 46/76 = 23/38.
    centred = lens_mixture_advantages(WRONG, CONFIDENCE, alpha=0.5, centred=True)
    assert centred[0].tolist() == pytest.approx([-A * n / 19 for n in (23, -5, -5, -13)], abs=IN_A_GROUP)
    equal_mass = lens_mixture_advantages(WRONG, CONFIDENCE, alpha=0.5, centred=True, mass="absolute")
    assert equal_mass[0].tolist() == pytest.approx([-A * n * 2 / 23 for n in (23, -5, -5, -13)], abs=IN_A_GROUP)


def negative_mass(round_, advantages: Tensor) -> tuple[float, int]:
    """The sum of |A| over negative groups, and how many there are."""
    negative = [q for q, kind in enumerate(round_.kinds) if kind == "negative"]
    return advantages[negative].double().abs().sum().item(), len(negative)


@given(rounds(), st.floats(0, 1), st.floats(0, 4))
def test_the_mean_penalty_of_a_group_is_alpha_over_its_size(round_, lam, temper):
    advantages = round_.run(partial(lens_mixture_advantages, alpha=2.0, lam=lam, temper=temper))
    for q, kind in enumerate(round_.kinds):
        if kind == "negative":
            assert advantages[q].double().sum().item() == pytest.approx(-2.0, abs=20 * IN_A_GROUP)


@given(rounds())
def test_the_four_cells_of_centring_and_confidence_have_equal_mass_but_for_the_one_that_is_empty(round_):
    """alpha a negative group, or alpha/G an answer; but for centred and without confidence, which is GRPO."""
    cell = partial(lens_mixture_advantages, alpha=2.0, mass="absolute")
    plain = [round_.run(partial(cell, lam=lam)) for lam in (0.0, 1.0)]
    for advantages in plain:
        mass, groups = negative_mass(round_, advantages)
        assert mass == pytest.approx(2.0 * groups, rel=40 * IN_A_GROUP)
    centred = round_.run(partial(cell, lam=1.0, centred=True))
    mass, groups = negative_mass(round_, centred)
    differ = [
        len(set(round_.confidence[q][round_.valid[q]].tolist())) > 1
        for q, kind in enumerate(round_.kinds)
        if kind == "negative"
    ]
    assert mass == pytest.approx(2.0 * groups if any(differ) else 0.0, rel=40 * IN_A_GROUP)
    empty = round_.run(partial(cell, lam=0.0, centred=True))
    assert torch.equal(empty, grpo_advantages(round_.correct, valid=round_.valid))


@given(rounds())
def test_without_centring_both_masses_are_one(round_):
    mean = round_.run(partial(lens_mixture_advantages, alpha=2.0))
    absolute = round_.run(partial(lens_mixture_advantages, alpha=2.0, mass="absolute"))
    torch.testing.assert_close(mean, absolute, atol=IN_A_GROUP, rtol=IN_A_GROUP)


@given(rounds(), st.floats(0.01, 1))
def test_equal_mass_keeps_the_proportions_of_groups(round_, lam):
    """One factor for the round; what lam was no longer shows."""
    centred = round_.run(partial(lens_mixture_advantages, centred=True, lam=1.0)).double()
    equal_mass = round_.run(partial(lens_mixture_advantages, centred=True, lam=lam, mass="absolute")).double()
    negative = [q for q, kind in enumerate(round_.kinds) if kind == "negative"]
    if negative and centred[negative].abs().max() > 0:
        factor = equal_mass[negative].abs().sum() / centred[negative].abs().sum()
        expected = factor * centred[negative]
        torch.testing.assert_close(equal_mass[negative], expected, atol=factor * IN_A_GROUP, rtol=IN_A_GROUP)


@given(rounds())
def test_with_lam_zero_it_is_uniform(round_):
    for options in ({"lam": 0.0}, {"lam": 1.0, "temper": 0.0}):
        advantages = round_.run(partial(lens_mixture_advantages, alpha=2.0, **options))
        expected = uniform_advantages(round_.correct, alpha=2.0, valid=round_.valid)
        torch.testing.assert_close(advantages, expected, atol=IN_A_GROUP, rtol=0)


@given(rounds())
def test_centred_it_is_lens_but_for_the_mean_of_w(round_):
    """LENS has alpha/G (w - mean w), computed here from its calibrated rewards; this has that over mean w."""
    advantages = round_.run(partial(lens_mixture_advantages, alpha=2.0, centred=True)).double()
    expected = round_.run(partial(lens_advantages, alpha=2.0, groups="negative")).double()
    for q, kind in enumerate(round_.kinds):
        if kind == "negative":
            sure = round_.confidence[q][round_.valid[q]].double()
            mean = (sure / (2 * sure.max() - sure)).mean()
            torch.testing.assert_close(advantages[q] * mean, expected[q], atol=4 * IN_A_GROUP, rtol=0)
        else:
            assert torch.equal(advantages[q], expected[q])


@given(st.integers(1, 60), st.floats(1e-6, 1), st.sampled_from(["mean", "absolute"]))
def test_equal_confidence_centred_gives_exactly_zero(size, sure, mass):
    wrong, confidence = torch.zeros(1, size, dtype=torch.bool), torch.full((1, size), sure)
    advantages = lens_mixture_advantages(wrong, confidence, alpha=4.0, centred=True, mass=mass)
    assert advantages.tolist() == [[0.0] * size]


def test_a_confidence_that_underflowed_stays_finite():
    confidence = torch.tensor([[0.0, 0.5], [0.0, 0.0]])
    wrong = torch.zeros(2, 2, dtype=torch.bool)
    advantages = lens_mixture_advantages(wrong, confidence, alpha=1.0)
    assert advantages.tolist() == [[pytest.approx(0), -1.0], [-0.5, -0.5]]


@given(rounds(), st.randoms(use_true_random=False), st.sampled_from([{}, {"centred": True}]))
def test_order_does_not_matter(round_, random, options):
    check_order_does_not_matter(lambda: partial(lens_mixture_advantages, **options), round_, random)


@given(rounds(), st.integers(0, 2**32 - 1), st.sampled_from([{}, {"centred": True}, {"mass": "absolute"}]))
def test_invalid_answers_take_no_part(round_, seed, options):
    check_invalid_answers_take_no_part(lambda: partial(lens_mixture_advantages, **options), round_, seed)


@pytest.mark.parametrize(
    "options", [{"alpha": -1.0}, {"lam": 1.1}, {"lam": -0.1}, {"temper": -1.0}, {"temper": math.nan}, {"mass": "sum"}]
)
def test_values_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        lens_mixture_advantages(WRONG, CONFIDENCE, **options)
