"""The gradient of pass@G: summed over every group of a small policy, by hand, and over several rounds."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens.objectives import grpo_advantages, uniform_advantages
from lens.objectives.pass_g import PassG
from tests.support.rounding import IN_A_GROUP
from tests.support.rounds import (
    check_a_state_goes_on,
    check_invalid_answers_take_no_part,
    check_order_does_not_matter,
    rounds,
)

T, F = True, False


@pytest.mark.parametrize("baseline", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_added_term_is_the_gradient_of_pass_at_g(size, baseline):
    """Over all groups of G answers of a softmax over four, two of them right, each by its probability."""
    logits = torch.tensor([0.3, -1.2, 1.7, 0.4], dtype=torch.float64, requires_grad=True)
    pi = logits.softmax(dim=0)
    right = torch.tensor([F, T, F, T])
    groups = torch.tensor(list(itertools.product(range(4), repeat=size)))  # [4^G, G]
    objective = PassG(alpha=float(size))  # so that alpha / G = 1
    names = [f"group {n}" for n in range(len(groups))]
    objective.load_state_dict({"counts": {name: [baseline, 1 - baseline] for name in names}})
    correct = right[groups]
    added = (objective(correct, problem_ids=names) - grpo_advantages(correct)).double()
    chances = pi.detach()[groups].prod(dim=1)
    scores = torch.eye(4, dtype=torch.float64)[groups] - pi.detach()  # [4^G, G, 4], of the softmax
    estimate = torch.einsum("n,ng,ngk->k", chances, added, scores)
    expected = torch.autograd.grad(1 - (1 - pi[right].sum()) ** size, logits)[0]
    torch.testing.assert_close(estimate, expected, atol=size * IN_A_GROUP, rtol=0)


def test_two_rounds_by_hand():
    objective = PassG(alpha=0.8, decay=0.5)
    correct = torch.tensor([[F, F], [T, T], [T, F]])
    half = 0.5 / (math.sqrt(0.5) + 1e-6)  # GRPO of one right of two
    first = objective(correct, problem_ids=["a", "b", "c"])  # b = 1/2, and alpha/G = 0.4
    expected = [[-0.2, -0.2], [0.2, 0.2], [half + 0.2, -half + 0.2]]
    torch.testing.assert_close(first, torch.tensor(expected), atol=IN_A_GROUP, rtol=0)
    # Counts of a are 1/4 and 1/4 + 1, b = 1/6; of b and c the other way round, b = 5/6.
    second = objective(correct, problem_ids=["a", "b", "c"])
    added = [0.4 * (0 - 1 / 6), 0.4 * (1 - 5 / 6), 0.4 * (1 - 5 / 6)]
    expected = [[added[0]] * 2, [added[1]] * 2, [half + added[2], -half + added[2]]]
    torch.testing.assert_close(second, torch.tensor(expected), atol=IN_A_GROUP, rtol=0)


@given(rounds(), st.floats(0, 8))
def test_with_the_baseline_one_it_is_uniform(round_, alpha):
    advantages = round_.run(PassG(alpha=alpha, baseline="one"))
    expected = uniform_advantages(round_.correct, alpha=alpha, valid=round_.valid)
    torch.testing.assert_close(advantages, expected, atol=IN_A_GROUP, rtol=IN_A_GROUP)


@given(rounds())
def test_the_batch_baseline_is_the_share_of_groups_with_a_right_answer(round_):
    added = round_.run(PassG(alpha=2.0, baseline="batch")) - grpo_advantages(round_.correct, valid=round_.valid)
    kinds = [kind for kind in round_.kinds if kind != "none"]
    solved = sum(kind != "negative" for kind in kinds)
    for q, kind in enumerate(round_.kinds):
        valid = round_.valid[q]
        for value in added[q][valid].tolist():
            expected = 2.0 / valid.sum().item() * ((kind != "negative") - solved / len(kinds))
            assert value == pytest.approx(expected, abs=2 * IN_A_GROUP)
        if solved in (0, len(kinds)):
            assert (added[q] == 0).all()  # one outcome throughout says nothing against its own mean


@pytest.mark.parametrize("decay", [0.5, 0.875])
def test_a_problem_that_never_succeeds_stops_being_pushed_and_one_that_fails_once_is_pushed_hard(decay):
    objective, wrong = PassG(alpha=4.0, decay=decay), torch.zeros(1, 4, dtype=torch.bool)
    for n in range(12):
        prior = 0.5 * decay**n  # what is left of either count; the failures add 1 + decay + ... + decay^(n-1)
        b = prior / (2 * prior + sum(decay**age for age in range(n)))
        pushed = objective(wrong, problem_ids=["hopeless"])
        assert pushed.tolist() == [[pytest.approx(-b, abs=IN_A_GROUP)] * 4]
    for _ in range(12):
        objective(~wrong, problem_ids=["easy"])
    assert objective(wrong, problem_ids=["easy"])[0, 0] < 5 * pushed[0, 0]
    uniform = PassG(alpha=4.0, baseline="one")
    assert [uniform(wrong, problem_ids=["hopeless"])[0, 0].item() for _ in range(3)] == [-1.0] * 3


def test_shaped_rewards_are_for_grpo_and_verdicts_for_the_term():
    rewards = torch.tensor([[0.5, -0.5]])
    advantages = PassG(alpha=1.0)(torch.tensor([[T, T]]), problem_ids=["a"], rewards=rewards)
    expected = [sign * 0.5 / (math.sqrt(0.5) + 1e-6) + 0.25 for sign in (1, -1)]
    assert advantages[0].tolist() == pytest.approx(expected, abs=IN_A_GROUP)


def test_a_group_without_a_valid_answer_is_not_remembered():
    objective = PassG()
    correct, valid = torch.tensor([[T, F], [F, F]]), torch.tensor([[F, F], [T, T]])
    assert objective(correct, problem_ids=["a", "b"], valid=valid)[0].tolist() == [0.0, 0.0]
    assert list(objective.state_dict()["counts"]) == ["b"]


@given(rounds(), rounds())
def test_a_state_in_the_middle_goes_on_bit_by_bit(first, second):
    check_a_state_goes_on(PassG, first, second)


baselines = st.sampled_from(["tracked", "batch", "one"])


@given(rounds(), st.randoms(use_true_random=False), baselines)
def test_order_does_not_matter(round_, random, baseline):
    check_order_does_not_matter(partial(PassG, baseline=baseline), round_, random)


@given(rounds(), st.integers(0, 2**32 - 1), baselines)
def test_invalid_answers_take_no_part(round_, seed, baseline):
    check_invalid_answers_take_no_part(partial(PassG, baseline=baseline), round_, seed)


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"decay": 2.0}, {"baseline": "zero"}])
def test_values_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PassG(**options)
