"""What negative groups say on average, by a sum over every tuple of answers, right ones too, and by hand."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lens.commands.theory import COSINES, check_negative_groups, profile_table, random_table
from lens.objectives import calibrated_rewards, grpo_advantages, lens_advantages, uniform_advantages
from lens.objectives import negative_group_checks as checks
from lens.objectives.negative_groups import PROFILES, NegativeGroups, compare_directions, make_policy, multisets
from tests.support.rounding import IN_A_GROUP

EXACT = 1e-10
CLOSE = {"rtol": EXACT, "atol": EXACT}

Objective = Callable[[Tensor, Tensor], Tensor]
logits = st.lists(st.floats(-4, 4), min_size=3, max_size=5)


def expected(values: list[float] | Tensor, right: list[int], size: int, objective: Objective) -> tuple[Tensor, Tensor]:
    """E[1{c=0} sum_i A_i grad log pi(o_i)] and grad pass@G, by autograd through all O^G ordered tuples."""
    pi = torch.as_tensor(values, dtype=torch.float64).clone().requires_grad_()
    log_pi = pi.log_softmax(dim=0)
    tuples = torch.tensor(list(itertools.product(range(len(pi)), repeat=size)))
    is_right = torch.isin(torch.arange(len(pi)), torch.tensor(right))
    correct = is_right[tuples]
    advantages = objective(correct, log_pi.exp().detach()[tuples]).double()
    advantages = torch.where(correct.any(dim=1, keepdim=True), 0.0, advantages)
    chance = log_pi[tuples].sum(dim=1).exp()  # [O^G]
    surrogate = (chance.detach() * (advantages * log_pi[tuples]).sum(dim=1)).sum()
    (update,) = torch.autograd.grad(surrogate, pi, retain_graph=True)
    (of_pass,) = torch.autograd.grad((chance * correct.any(dim=1)).sum(), pi)
    return update, of_pass


def covariance_with_score(values: list[float], right: list[int], weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """Cov(w, grad log pi) among wrong answers, the mean of w, and 1 - p, from sums over single answers."""
    pi = torch.tensor(values, dtype=torch.float64).softmax(dim=0)
    wrong = [o for o in range(len(pi)) if o not in right]
    q = sum(pi[o].item() for o in wrong)
    scores = [torch.nn.functional.one_hot(torch.tensor(o), len(pi)) - pi for o in wrong]
    shares = [pi[o].item() / q for o in wrong]
    mean = sum(share * weight[o] for share, o in zip(shares, wrong, strict=True))
    mean_score = sum(share * score for share, score in zip(shares, scores, strict=True))
    covariance = sum(
        share * (weight[o] - mean) * (score - mean_score) for share, o, score in zip(shares, wrong, scores, strict=True)
    )
    return covariance, mean, q


def centred(weights: Tensor) -> Tensor:
    return weights - weights.mean(dim=1, keepdim=True)


def penalty(values: list[float], weight: Tensor, centre: bool) -> Objective:
    """The penalty -w(o) of each answer, found by its confidence, which is its probability."""
    pi = torch.tensor(values, dtype=torch.float64).log_softmax(dim=0).exp()

    def give(correct: Tensor, confidence: Tensor) -> Tensor:
        weights = weight[(confidence[..., None] - pi).abs().argmin(dim=-1)]
        return -(centred(weights) if centre else weights)

    return give


# --- F1 and F2 over every tuple --------------------------------------------------------------------------------------


@given(logits, st.integers(1, 4), st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_the_uniform_penalty_is_the_gradient_of_pass_at_g(values, size, number_right):
    right = list(range(number_right))
    update, of_pass = expected(values, right, size, lambda *group: uniform_advantages(*group, alpha=float(size)))
    pi = torch.tensor(values, dtype=torch.float64).softmax(dim=0)
    p = pi[right].sum()
    indicator = torch.isin(torch.arange(len(pi)), torch.tensor(right)).double()
    torch.testing.assert_close(of_pass, size * (1 - p) ** (size - 1) * pi * (indicator - p), **CLOSE)
    torch.testing.assert_close(update, of_pass, **CLOSE)


def test_alpha_scales_that_gradient():
    update, of_pass = expected([0.3, -1.0, 2.0, 0.1], [0], 4, lambda *group: uniform_advantages(*group, alpha=0.25))
    torch.testing.assert_close(update, 0.25 / 4 * of_pass, **CLOSE)


@given(logits, st.integers(2, 4), st.lists(st.floats(-3, 3), min_size=5, max_size=5))
@settings(max_examples=40, deadline=None)
def test_a_penalty_of_any_weight_has_two_parts_and_centring_leaves_one(values, size, weight):
    values = [value + 0.1 * place for place, value in enumerate(sorted(values))]  # no two answers are equally likely
    right, weight = [1], torch.tensor(weight, dtype=torch.float64)
    covariance, mean, q = covariance_with_score(values, right, weight)
    update, of_pass = expected(values, right, size, penalty(values, weight, centre=False))
    torch.testing.assert_close(update, mean * of_pass - size * q**size * covariance, **CLOSE)
    update, _ = expected(values, right, size, penalty(values, weight, centre=True))
    torch.testing.assert_close(update, -(size - 1) * q**size * covariance, **CLOSE)


def test_the_uniform_penalty_says_nothing_once_centred():
    update, _ = expected([0.3, -1.0, 2.0], [0], 3, lambda *group: centred(uniform_advantages(*group)))
    assert update.tolist() == [0, 0, 0]


def test_shuffled_confidences_say_nothing():
    orders = list(itertools.permutations(range(3)))

    def in_every_order(correct: Tensor, confidence: Tensor) -> Tensor:
        return sum(lens_advantages(correct, confidence[:, order]).double() for order in orders) / len(orders)

    values = [0.3, -1.0, 2.0, 0.5]
    update, _ = expected(values, [0], 3, in_every_order)
    torch.testing.assert_close(update, torch.zeros(4, dtype=torch.float64), rtol=0, atol=IN_A_GROUP)
    assert expected(values, [0], 3, lens_advantages)[0].abs().max() > 100 * IN_A_GROUP


def test_grpo_says_nothing_in_negative_groups():
    update, _ = expected([0.3, -1.0, 2.0], [0], 3, lambda correct, _: grpo_advantages(correct))
    assert update.tolist() == [0, 0, 0]


def test_the_entropy_of_wrong_answers_is_what_a_centred_logarithm_follows():
    values = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    update, _ = expected(values, [1], 3, lambda _, confidence: -centred(confidence.log()))
    wrong = values[[0, 2, 3]].clone().requires_grad_()
    entropy = -(wrong.softmax(dim=0) * wrong.log_softmax(dim=0)).sum()
    (gradient,) = torch.autograd.grad(entropy, wrong)
    q = 1 - values.softmax(dim=0)[1]
    torch.testing.assert_close(update[[0, 2, 3]], 2 * q**3 * gradient, **CLOSE)
    assert abs(update[1]) < EXACT


def test_dividing_by_lengths_brings_back_a_part_along_pass_at_g():
    values, lengths = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64), torch.tensor([1.0, 7.0, 2.0, 1.0])
    pi, q, size = values.softmax(dim=0), 1 - values.softmax(dim=0)[0], 3

    def divided(correct: Tensor, confidence: Tensor) -> Tensor:
        answers = (confidence[..., None] - pi).abs().argmin(dim=-1)
        return lens_advantages(correct, confidence, alpha=1.0) / lengths[answers]

    update, of_pass = expected(values, [0], size, divided)
    tuples = torch.tensor(list(itertools.product([1, 2, 3], repeat=size)))
    chance = (pi / q)[tuples].prod(dim=1)
    mean = (chance * -divided(torch.zeros(len(tuples), size, dtype=torch.bool), pi[tuples]).mean(dim=1)).sum()
    assert mean < -1e-3  # answer 3, which LENS raises, is shorter than answer 2, which it lowers
    # The logit of the right answer moves by the part along grad pass@G alone: Cov(w, score) has 0 there.
    assert update[0].item() == pytest.approx((mean * of_pass[0]).item(), abs=IN_A_GROUP)


# --- the enumeration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "tolerance"),
    [(lens_advantages, IN_A_GROUP), (calibrated_rewards, EXACT), (uniform_advantages, EXACT)],
)
@pytest.mark.parametrize(("right", "size"), [([0], 4), ([1, 3], 3), ([2], 1)])
def test_unordered_groups_say_what_all_tuples_say(objective, tolerance, right, size):
    values = torch.tensor([0.3, -1.0, 2.0, 0.5, -0.4], dtype=torch.float64)
    update, _ = expected(values, right, size, objective)
    pi = values.softmax(dim=0)
    is_right = torch.isin(torch.arange(5), torch.tensor(right))
    groups = NegativeGroups.of(pi, is_right, size)
    chance_of_negative = (1 - pi[is_right].sum()) ** size
    found = chance_of_negative * groups.update(groups.advantages(objective))
    torch.testing.assert_close(found, update, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("kinds", "size"), [(1, 3), (2, 5), (4, 4), (6, 8)])
def test_multisets_cover_every_tuple(kinds, size):
    members, orders = multisets(kinds, size)
    assert len(members) == math.comb(kinds + size - 1, size) == len({tuple(m) for m in members.tolist()})
    assert orders.sum().item() == pytest.approx(kinds**size, rel=1e-12)
    by_hand = [math.factorial(size) // math.prod(map(math.factorial, np.bincount(m).tolist())) for m in members.numpy()]
    assert orders.tolist() == pytest.approx(by_hand, rel=1e-12)


def test_a_group_of_two_by_hand():
    # Wrong answers a and b = a/3 given a group of two: {a, b} has the chance 2 (3/4) (1/4) = 3/8. There z is 1 and 1/3,
    # the penalties are 1/2 and (1/2) (1/3) / (5/3) = 1/10, and centred -1/5 and +1/5. {a, a} and {b, b} say nothing.
    pi = torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64)
    groups = NegativeGroups.of(pi, torch.tensor([True, False, False]), 2)
    update = groups.update(groups.advantages(lambda *group: lens_advantages(*group, alpha=1.0)))
    assert update.tolist() == pytest.approx([0, -3 / 40, 3 / 40], abs=IN_A_GROUP)


@pytest.mark.parametrize("objective", [lens_advantages, calibrated_rewards, uniform_advantages])
def test_what_an_answer_receives_does_not_depend_on_p(objective):
    shares = torch.tensor(PROFILES["long tail"], dtype=torch.float64)
    received = []
    for p in (0.5, 0.001):
        groups = NegativeGroups.of(*make_policy(shares, p), 4)
        received.append(groups.received(groups.advantages(objective)))
    torch.testing.assert_close(*received, rtol=0, atol=IN_A_GROUP)
    assert received[0][0] == 0 and received[0][1:].abs().min() > 100 * IN_A_GROUP


# --- the tables of the command ---------------------------------------------------------------------------------------


def test_every_statement_holds():
    table = check_negative_groups(num_spaces=30)
    assert table["penalty"].tolist() == list(checks.NEGATIVE_GROUP_CHECKS)
    assert table["largest error"].astype(float).max() < EXACT


@pytest.mark.parametrize(
    ("name", "false", "seen"),
    [
        ("uniform_advantages", lambda correct, _, alpha: -alpha * torch.ones_like(correct), {"uniform"}),
        (
            "centre",
            lambda rewards, valid: rewards.double(),
            {"any weight w, centred", "log pi, centred", "LENS", "LENS, logits", "LENS, ceiling"},
        ),
        (
            "calibrated_rewards",
            lambda correct, confidence: -1 / confidence,
            {"LENS, first order"},
        ),
        (
            "calibrated_rewards",
            lambda correct, confidence: torch.arange(confidence.numel()).reshape(confidence.shape).double().sin(),
            {"LENS, shuffled"},
        ),
        ("pass_at", lambda pi, right, k: pi[right].sum(), {"uniform", "any weight w", "LENS, not centred"}),
        ("entropy_of_wrong", lambda pi, right: -(pi * pi.log()).sum(), {"log pi, centred"}),
    ],
)
def test_a_false_statement_is_seen(monkeypatch, name, false, seen):
    monkeypatch.setattr(checks, name, false)
    table = check_negative_groups(num_spaces=8).set_index("penalty")["largest error"].astype(float)
    assert set(table[table > 1e-3].index) >= seen


def by_tuples(profile: tuple[float, ...], p: float, size: int) -> dict[str, float]:
    """Cosines of LENS and the uniform penalty from the sum over all tuples."""
    pi = np.array([p, *((1 - p) * np.array(profile) / sum(profile))])
    of_entropy = -pi * (np.log(pi) - (pi * np.log(pi)).sum())
    of_pass = pi * (np.eye(len(pi))[0] - p)
    found = {}
    for name, objective in (("LENS", lens_advantages), ("uniform", uniform_advantages)):
        update = expected(torch.tensor(pi).log(), [0], size, objective)[0].numpy()
        for target, gradient in (("pass@G", of_pass), ("entropy", of_entropy)):
            cosine = update @ gradient / np.linalg.norm(update) / np.linalg.norm(gradient)
            found[f"{name}: {target}"] = cosine
    return found


@pytest.mark.parametrize(("profile", "p"), [("slope", 0.3), ("long tail", 0.01), ("one confident", 0.0001)])
def test_cosines_are_those_of_the_sum_over_all_tuples(profile, p):
    shares = torch.tensor(PROFILES[profile], dtype=torch.float64)
    (found,) = compare_directions(shares, [p], 3)
    for name, cosine in by_tuples(PROFILES[profile], p, 3).items():
        assert found[name] == pytest.approx(cosine, abs=1e-5), name  # advantages are float32


def test_flat_wrong_answers_leave_lens_no_direction():
    (found,) = compare_directions(torch.ones(6, dtype=torch.float64), [0.01], 4)
    assert all(math.isnan(value) for name, value in found.items() if name.startswith("LENS:"))
    assert found["norm left"] == 0 and found["not centred: pass@G"] == pytest.approx(1)


def test_the_tables_have_every_profile_and_the_uniform_penalty_is_left_out_where_it_is_one():
    table = profile_table(size=3, chances=(0.2, 0.1))
    assert table["profile"].tolist() == [name for name in PROFILES for _ in range(2)]
    assert list(table.columns) == ["profile", "p", *COSINES]
    for shares in PROFILES.values():
        for found in compare_directions(torch.tensor(shares, dtype=torch.float64), (0.2, 0.1), 3):
            assert found["uniform: pass@G"] == pytest.approx(1, abs=EXACT)


def test_the_table_of_random_policies_has_quantiles():
    table = random_table(num_policies=20)
    assert table["p"].tolist() == ["0.016", "0.0003"]
    for cell in table[list(COSINES)].to_numpy().flat:
        middle, low, high = map(float, re.findall(r"-?\d\.\d\d", cell))
        assert -1 <= low <= middle <= high <= 1 and low < high
    assert table["LENS: pass@G"].nunique() == 1  # it does not depend on p
    with_one = random_table(num_policies=1, chances=(0.016,)).iloc[0]
    shares = (2 * torch.randn(1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).softmax(dim=1)[0]
    cosine = f"{by_tuples(tuple(shares.tolist()), 0.016, 4)['LENS: entropy']:.2f}"
    assert with_one["LENS: entropy"] == f"{cosine} ({cosine} to {cosine})"
