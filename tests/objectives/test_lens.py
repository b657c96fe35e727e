"""LENS against groups worked out by hand, against plain Python, and against what the paper says of every group."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lens.objectives import calibrated_rewards, estimate_difficulty, grpo_advantages, lens_advantages
from tests.support.rounding import IN_A_GROUP

EPS = 1e-6
T, F = True, False


class Group(NamedTuple):
    """One group of G = 4 with what the paper's section 5 makes of it."""

    correct: list[bool]
    confidence: list[float]
    difficulty: float
    rewards: list[float]
    advantages: list[float]


BY_HAND = {
    # D_imp = [1/4 * 1/0.5]^-1 = 2 is above 2 * 0.8 = 1.6, so D = 2.
    # Ratios 0.8/1.2 = 2/3, 0.4/1.6 = 1/4, 0.2/1.8 = 1/9; a quarter of them is 1/6, 1/16, 1/36.
    # Mean of 1, -1/6, -1/16, -1/36, in 144ths: (144 - 24 - 9 - 4)/4 = 107/4, that is 107/576.
    # Deviations in 576ths: 576 - 107 = 469, -96 - 107 = -203, -36 - 107 = -143, -16 - 107 = -123.
    # Variance: (469^2 + 203^2 + 143^2 + 123^2)/3 = (219961 + 41209 + 20449 + 15129)/3 = 296748/3 = 98916, over 576^2.
    "mixed, D_imp is active": Group(
        [T, F, F, F],
        [0.5, 0.8, 0.4, 0.2],
        2.0,
        [1, -1 / 6, -1 / 16, -1 / 36],
        [n / 576 / (math.sqrt(98916) / 576 + EPS) for n in (469, -203, -143, -123)],
    ),
    # D_imp = [1/4 * 1/0.2]^-1 = 0.8 is below 2 * 0.9 = 1.8, so D = 1.8.
    # Ratios 0.9/0.9 = 1, 0.6/1.2 = 1/2, 0.3/1.5 = 1/5; a quarter of them is 10/40, 5/40, 2/40.
    # Mean of 40, -10, -5, -2 (40ths): 23/4, that is 23/160.
    # Deviations in 160ths: 160 - 23 = 137, -40 - 23 = -63, -20 - 23 = -43, -8 - 23 = -31.
    # Variance: (18769 + 3969 + 1849 + 961)/3 = 25548/3 = 8516, over 160^2.
    "mixed, twice the maximum is active": Group(
        [T, F, F, F],
        [0.2, 0.9, 0.6, 0.3],
        1.8,
        [1, -1 / 4, -1 / 8, -1 / 20],
        [n / 160 / (math.sqrt(8516) / 160 + EPS) for n in (137, -63, -43, -31)],
    ),
    # D_imp = [1/4 * 3/0.9]^-1 = 1.2 is below 2 * 0.96 = 1.92, so D = 1.92. The mistake's ratio is 1, its reward -1/4.
    # Mean (3 - 1/4)/4 = 11/16; deviations 5/16 and -15/16; variance (3 * 25 + 225)/3 = 100, over 16^2: 10/16 squared.
    "mixed, a single confident mistake": Group(
        [T, T, T, F],
        [0.9, 0.9, 0.9, 0.96],
        1.92,
        [1, 1, 1, -1 / 4],
        [n / 16 / (10 / 16 + EPS) for n in (5, 5, 5, -15)],
    ),
    # D = 2 * 0.8 = 1.6. Ratios 0.8/0.8 = 1, 0.4/1.2 = 1/3 twice, 0.2/1.4 = 1/7; a quarter: 1/4, 1/12, 1/12, 1/28.
    # In 84ths 21, 7, 7, 3, whose mean is 38/4, that is 38/336 = 19/168.
    # Deviations in 168ths: -42 + 19 = -23, -14 + 19 = 5 twice, -6 + 19 = 13. A quarter of them, for alpha.
    "negative": Group(
        [F, F, F, F],
        [0.8, 0.4, 0.4, 0.2],
        1.6,
        [-1 / 4, -1 / 12, -1 / 12, -1 / 28],
        [-23 / 672, 5 / 672, 5 / 672, 13 / 672],
    ),
    # D = 2 * 0.9 = 1.8. Ratios 1 and 0.1/1.7 = 1/17; a quarter of them: 17/68 and three times 1/68.
    # Mean 20/272 = 5/68; deviations -12/68 and 4/68; a quarter of them: -3/68 and 1/68.
    "negative, a single confident mistake": Group(
        [F, F, F, F],
        [0.1, 0.1, 0.9, 0.1],
        1.8,
        [-1 / 68, -1 / 68, -1 / 4, -1 / 68],
        [1 / 68, 1 / 68, -3 / 68, 1 / 68],
    ),
    # D_imp = [1/4 * (2 + 4 + 2 + 4)]^-1 = 1/3, below 2 * 0.5 = 1. Nothing is penalised; equal rewards teach nothing.
    "positive": Group([T, T, T, T], [0.5, 0.25, 0.5, 0.25], 1.0, [1, 1, 1, 1], [0, 0, 0, 0]),
}
CASES = pytest.mark.parametrize("group", BY_HAND.values(), ids=BY_HAND)


def close(actual: Tensor, expected: list) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), atol=IN_A_GROUP, rtol=0)


def batch(*groups: Group) -> tuple[Tensor, Tensor]:
    return torch.tensor([g.correct for g in groups]), torch.tensor([g.confidence for g in groups])


# --- by hand ---


@CASES
def test_group_by_hand(group):
    correct, confidence = batch(group)
    close(estimate_difficulty(correct, confidence), [[group.difficulty]])
    close(calibrated_rewards(correct, confidence), [group.rewards])
    close(lens_advantages(correct, confidence), [group.advantages])


def test_groups_of_a_batch_do_not_meet():
    correct, confidence = batch(*BY_HAND.values())
    close(estimate_difficulty(correct, confidence), [[g.difficulty] for g in BY_HAND.values()])
    close(calibrated_rewards(correct, confidence), [g.rewards for g in BY_HAND.values()])
    advantages = lens_advantages(correct, confidence)
    assert advantages.dtype == torch.float32
    close(advantages, [g.advantages for g in BY_HAND.values()])


@CASES
@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("verdict", [T, F])
def test_an_invalid_answer_changes_nothing_and_gets_nothing(group, place, verdict):
    def with_fifth(values: list, value: object) -> list:
        return [[*values[:place], value, *values[place:]]]

    correct = torch.tensor(with_fifth(group.correct, verdict))
    confidence = torch.tensor(with_fifth(group.confidence, 0.99))  # would be the maximum
    valid = torch.tensor(with_fifth([T] * 4, F))
    close(estimate_difficulty(correct, confidence, valid=valid), [[group.difficulty]])
    close(calibrated_rewards(correct, confidence, valid=valid), with_fifth(group.rewards, 0))
    close(lens_advantages(correct, confidence, valid=valid), with_fifth(group.advantages, 0))


def test_groups_with_one_valid_answer_or_none_teach_nothing():
    correct = torch.tensor([[F, T, F], [F, T, T], [T, F, F], [F, F, F]])
    confidence = torch.tensor([[0.9, 0.5, 0.1]] * 4)
    valid = torch.tensor([[F, F, F], [T, F, F], [T, F, F], [F, F, F]])
    assert lens_advantages(correct, confidence, valid=valid).tolist() == [[0.0] * 3] * 4
    rewards = calibrated_rewards(correct, confidence, valid=valid)
    assert rewards.tolist() == [[0, 0, 0], [-1, 0, 0], [1, 0, 0], [0, 0, 0]]  # G = 1: -(1/1) * 0.9/(1.8 - 0.9)


def test_scales_replace_one_over_g_in_their_own_groups():
    mixed, negative = BY_HAND["mixed, D_imp is active"], BY_HAND["negative"]
    correct, confidence = batch(mixed, negative)
    rewards = calibrated_rewards(correct, confidence, scale_mixed=1.0, scale_negative=0.5)
    close(
        rewards, [[1, -2 / 3, -1 / 4, -1 / 9], [-1 / 2, -1 / 6, -1 / 6, -1 / 14]]
    )  # the ratios above, and half of them

    advantages = lens_advantages(correct, confidence, scale_negative=1.0)
    close(advantages, [mixed.advantages, [4 * a for a in negative.advantages]])

    # Rewards 1, -2/3, -1/4, -1/9 in 36ths: 36, -24, -9, -4, with mean -1/4. Deviations in 144ths: 145, -95, -35, -15.
    # Variance: (21025 + 9025 + 1225 + 225)/3 = 31500/3 = 10500, over 144^2.
    advantages = lens_advantages(correct, confidence, scale_mixed=1.0)
    scaled = [n / 144 / (math.sqrt(10500) / 144 + EPS) for n in (145, -95, -35, -15)]
    close(advantages, [scaled, negative.advantages])


def test_ablations_leave_the_other_groups_to_grpo():
    mixed, negative = BY_HAND["mixed, D_imp is active"], BY_HAND["negative"]
    correct, confidence = batch(mixed, negative)
    close(lens_advantages(correct, confidence, groups="mixed"), [mixed.advantages, [0, 0, 0, 0]])
    of_grpo = [0.75 / (0.5 + EPS), *[-0.25 / (0.5 + EPS)] * 3]  # one right of four: mean 1/4, standard deviation 1/2
    close(lens_advantages(correct, confidence, groups="negative"), [of_grpo, negative.advantages])


def test_without_the_standard_deviation_mixed_groups_are_only_centred():
    mixed, negative = BY_HAND["mixed, twice the maximum is active"], BY_HAND["negative"]
    advantages = lens_advantages(*batch(mixed, negative), scale_by_std=False)
    close(advantages, [[137 / 160, -63 / 160, -43 / 160, -31 / 160], negative.advantages])


def test_alpha_is_a_quarter_unless_said_otherwise():
    correct, confidence = batch(*BY_HAND.values())
    assert torch.equal(lens_advantages(correct, confidence), lens_advantages(correct, confidence, alpha=0.25))
    close(lens_advantages(*batch(BY_HAND["negative"]), alpha=1.0), [[-23 / 168, 5 / 168, 5 / 168, 13 / 168]])


# --- the difficulty of whole sequences ---


def test_sequence_difficulty_takes_the_probability_of_the_whole_answer():
    # The right answer has pi = 0.9^2 = 0.81, so D_imp = 4 * 0.81 = 3.24; with pibar it is 4 * 0.9 = 3.6.
    correct, confidence = torch.tensor([[T, F, F, F]]), torch.tensor([[0.9, 0.8, 0.4, 0.2]])
    lengths = torch.tensor([[2, 9, 9, 9]])
    close(estimate_difficulty(correct, confidence, lengths=lengths, difficulty="sequence"), [[3.24]])
    close(estimate_difficulty(correct, confidence, lengths=lengths), [[3.6]])
    # Ratios 0.8/2.44 = 20/61, 0.4/2.84 = 10/71, 0.2/3.04 = 5/76, and a quarter of them.
    rewards = calibrated_rewards(correct, confidence, lengths=lengths, difficulty="sequence")
    close(rewards, [[1, -5 / 61, -5 / 142, -5 / 304]])


def test_sequence_difficulty_sums_over_right_answers():
    # 1/pi is 2^1 and 2^3, so D_imp = [(2 + 8)/2]^-1 = 0.2, below 2 * 0.5. In the second group pi = 1: D_imp = 2/1 = 2.
    correct, confidence = torch.tensor([[T, T], [T, F]]), torch.tensor([[0.5, 0.5], [1.0, 0.25]])
    lengths = torch.tensor([[1, 3], [4096, 7]])
    close(estimate_difficulty(correct, confidence, lengths=lengths, difficulty="sequence"), [[1.0], [2.0]])


@pytest.mark.parametrize("right", [1e-30, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("length", [1, 100, 4096])
def test_long_answers_underflow_into_the_maximum(right, length):
    correct = torch.tensor([[T, F, F], [T, T, F], [F, F, F]])
    confidence = torch.tensor([[right, 0.7, 0.3], [right, 0.999, 0.3], [0.6, 0.2, 1e-30]])
    lengths = torch.tensor([[length, 4096, 1], [length, 4096, 4096], [length, 1, 4096]])
    d = estimate_difficulty(correct, confidence, lengths=lengths, difficulty="sequence")
    log_pi = length * math.log(confidence[0, 0].item())
    d_imp = 3 * math.exp(log_pi) if log_pi > -700 else 0.0
    maxima = confidence.amax(dim=1).tolist()
    assert d[0].item() == pytest.approx(max(d_imp, 2 * maxima[0]), abs=IN_A_GROUP)
    assert d[2].item() == pytest.approx(1.2, abs=IN_A_GROUP)
    assert (d[:, 0] >= 2 * confidence.amax(dim=1)).all()
    for values in (
        d,
        calibrated_rewards(correct, confidence, lengths=lengths, difficulty="sequence"),
        lens_advantages(correct, confidence, lengths=lengths, difficulty="sequence"),
    ):
        assert values.isfinite().all()


@pytest.mark.parametrize("difficulty", ["length_normalized", "sequence"])
def test_a_confidence_that_underflowed_to_zero_stays_finite(difficulty):
    correct = torch.tensor([[T, F], [T, F], [F, F], [F, F]])
    confidence = torch.tensor([[0.0, 0.5], [0.5, 0.0], [0.0, 0.5], [0.0, 0.0]])
    lengths = torch.full((4, 2), 4096)
    rewards = calibrated_rewards(correct, confidence, lengths=lengths, difficulty=difficulty)
    close(rewards, [[1, -0.5], [1, 0], [0, -0.5], [-0.5, -0.5]])
    advantages = lens_advantages(correct, confidence, lengths=lengths, difficulty=difficulty)
    assert advantages.isfinite().all() and advantages[3].tolist() == [0, 0]


@pytest.mark.parametrize(("counts", "right"), [([10, 30, 20, 40], [0]), ([10, 10, 20, 20, 20, 20], [0, 1])])
def test_importance_sampling_counts_the_right_answers(counts, right):
    # A hundred answers drawn exactly in proportion to pi: each right answer adds (1/100) (100 pi) / pi = 1 to the sum,
    # so that D = 1 / (number of right answers).
    answers = torch.tensor([[answer for answer, count in enumerate(counts) for _ in range(count)]])
    correct = torch.isin(answers, torch.tensor(right))
    confidence = torch.tensor(counts, dtype=torch.float64)[answers] / 100
    ones = torch.ones_like(answers)
    for difficulty in ("length_normalized", "sequence"):
        close(estimate_difficulty(correct, confidence, lengths=ones, difficulty=difficulty), [[1 / len(right)]])


# --- any group ---


def reference(correct: list[bool], confidence: list[float], alpha: float, probabilities: list[float]) -> list[float]:
    """Section 5 of the paper for one group, in plain Python; probabilities are those that define D_imp."""
    size = len(correct)
    d = 2 * max(confidence)
    if any(correct):
        d = max(d, size / math.fsum(1 / p for p, right in zip(probabilities, correct, strict=True) if right))
    rewards = [1.0 if right else -p / (d - p) / size for p, right in zip(confidence, correct, strict=True)]
    mean = math.fsum(rewards) / size
    if not any(correct):
        return [alpha * (reward - mean) for reward in rewards]
    return [(reward - mean) / (statistics.stdev(rewards) + EPS) for reward in rewards]


KINDS = {"negative": lambda size: (0, 0), "mixed": lambda size: (1, size - 1), "positive": lambda size: (size, size)}
kinds = st.sampled_from(list(KINDS))
confidences = st.integers(1, 1000).map(lambda n: n / 1000)


@st.composite
def any_group(draw, kind: st.SearchStrategy[str] = kinds, size: int | None = None) -> tuple[list[bool], list[float]]:
    size = size or draw(st.integers(2, 9))
    right = draw(st.integers(*KINDS[draw(kind)](size)))
    correct = draw(st.permutations([T] * right + [F] * (size - right)))
    return correct, draw(st.lists(confidences, min_size=size, max_size=size))


@st.composite
def any_batch(draw, kind: st.SearchStrategy[str] = kinds) -> tuple[Tensor, Tensor]:
    size = draw(st.integers(2, 9))
    groups = draw(st.lists(any_group(kind, size), min_size=1, max_size=5))
    return torch.tensor([g[0] for g in groups]), torch.tensor([g[1] for g in groups])


mixed, negative, positive = (any_batch(st.just(kind)) for kind in ("mixed", "negative", "positive"))


@given(any_group(), st.sampled_from([0.25, 1.0, 4.0]), st.integers(1, 40))
def test_any_group_agrees_with_plain_python(group, alpha, length):
    correct, confidence = torch.tensor([group[0]]), torch.tensor([group[1]])
    pibar = confidence[0].tolist()
    expected = reference(group[0], pibar, alpha, pibar)
    assert lens_advantages(correct, confidence, alpha=alpha)[0].tolist() == pytest.approx(expected, abs=2e-6)
    lengths = (torch.arange(len(pibar)) % length + 1)[None]
    whole = [p**n for p, n in zip(pibar, lengths[0].tolist(), strict=True)]
    expected = reference(group[0], pibar, alpha, whole)
    advantages = lens_advantages(correct, confidence, alpha=alpha, lengths=lengths, difficulty="sequence")
    assert advantages[0].tolist() == pytest.approx(expected, abs=2e-6)


@given(mixed, st.booleans())
def test_mixed_groups_reward_every_right_answer_and_punish_every_wrong_one(groups, scale_by_std):
    correct, confidence = groups
    advantages = lens_advantages(correct, confidence, scale_by_std=scale_by_std)
    assert (advantages[correct] > 0).all() and (advantages[~correct] < 0).all()


@given(any_batch())
def test_the_ratio_is_in_the_half_open_unit_interval(groups):
    correct, confidence = groups
    ratio = confidence.double() / (estimate_difficulty(correct, confidence) - confidence.double())
    assert ((ratio > 0) & (ratio <= 1)).all()
    rewards = calibrated_rewards(correct, confidence, scale_mixed=0.5, scale_negative=0.5)
    assert (rewards[correct] == 1).all() and ((rewards[~correct] < 0) & (rewards[~correct] >= -0.5)).all()


@given(any_batch())
def test_more_confidence_in_a_wrong_answer_costs_more(groups):
    correct, confidence = groups
    for values in (calibrated_rewards(correct, confidence), lens_advantages(correct, confidence)):
        for right, sure, value in zip(correct, confidence, values, strict=True):
            in_order = value[~right][sure[~right].argsort()]
            rises = sure[~right].sort().values.diff() > 0
            assert (in_order.diff()[rises] < 0).all()
            assert (in_order.diff()[~rises] == 0).all()


@given(st.integers(1, 100), confidences, st.floats(0, 10))
def test_equal_confidence_in_a_negative_group_gives_exactly_zero(size, sure, alpha):
    advantages = lens_advantages(torch.zeros(1, size, dtype=torch.bool), torch.full((1, size), sure), alpha=alpha)
    assert advantages.tolist() == [[0.0] * size]


@given(any_batch(), st.randoms(use_true_random=False))
def test_order_within_groups_and_of_questions_does_not_matter(groups, random):
    correct, confidence = groups
    questions = random.sample(range(len(correct)), len(correct))
    answers = torch.tensor([random.sample(range(correct.shape[1]), correct.shape[1]) for _ in questions])
    shuffled = (values[questions].gather(1, answers) for values in (correct, confidence))
    expected = lens_advantages(correct, confidence)[questions].gather(1, answers)
    torch.testing.assert_close(lens_advantages(*shuffled), expected, atol=IN_A_GROUP, rtol=IN_A_GROUP)


@given(any_batch(), st.sampled_from(["all", "mixed", "negative"]))
def test_advantages_of_a_group_sum_to_zero(groups, which):
    sums = lens_advantages(*groups, groups=which).double().sum(dim=1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=40 * IN_A_GROUP, rtol=0)


@given(any_batch())
def test_with_alpha_zero_negative_only_is_grpo(groups):
    advantages = lens_advantages(*groups, alpha=0.0, groups="negative")
    assert torch.equal(advantages, grpo_advantages(groups[0]))


@given(negative)
def test_mixed_only_teaches_nothing_in_negative_groups(groups):
    advantages = lens_advantages(*groups, groups="mixed")
    assert torch.equal(advantages, torch.zeros_like(advantages))


@given(any_batch(), st.sampled_from([0.25, 0.3, 7.0]))
def test_alpha_scales_negative_groups_and_nothing_else(groups, alpha):
    once, twice = (lens_advantages(*groups, alpha=a) for a in (alpha, 2 * alpha))
    is_negative = ~groups[0].any(dim=1)
    assert torch.equal(twice[is_negative], 2 * once[is_negative])
    assert torch.equal(twice[~is_negative], once[~is_negative])


@given(positive, st.sampled_from(["all", "mixed", "negative"]))
def test_positive_groups_give_exactly_zero(groups, which):
    advantages = lens_advantages(*groups, groups=which)
    assert torch.equal(advantages, torch.zeros_like(advantages))


@given(any_batch(), st.data())
def test_invalid_answers_might_as_well_not_be_there(groups, data):
    correct, confidence = groups
    flags = st.lists(st.booleans(), min_size=correct.numel(), max_size=correct.numel())
    valid = torch.tensor(data.draw(flags)).view_as(correct)
    advantages = lens_advantages(correct, confidence, valid=valid)
    assert (advantages[~valid] == 0).all()
    for group, kept in enumerate(valid):
        if kept.any():
            alone = lens_advantages(correct[group, kept][None], confidence[group, kept][None])[0]
            torch.testing.assert_close(advantages[group, kept], alone, atol=IN_A_GROUP, rtol=IN_A_GROUP)


def test_graded_rewards_by_hand():
    """The paper's form r - (1 - r) scale pibar / (D - pibar), with D_imp = [(1/2) 0.6 / 0.5]^-1 = 5/3 above 2 max."""
    correct, confidence = torch.tensor([[False, False]]), torch.tensor([[0.5, 0.25]])
    rewards = torch.tensor([[0.6, 0.0]])
    d = estimate_difficulty(correct, confidence, rewards=rewards)
    assert d.item() == pytest.approx(5 / 3)
    found = calibrated_rewards(correct, confidence, rewards=rewards)[0].tolist()
    by_hand = [0.6 - 0.4 * 0.5 * 0.5 / (5 / 3 - 0.5), -0.5 * 0.25 / (5 / 3 - 0.25)]
    assert found == pytest.approx(by_hand)
    assert lens_advantages(correct, confidence, rewards=rewards, alpha=2.0)[0].tolist() == pytest.approx(
        [by_hand[0] - by_hand[1], by_hand[1] - by_hand[0]]
    )
