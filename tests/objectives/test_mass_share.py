"""The controller of the share of negative groups: what it holds, when it stops, and that a state goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lens.losses.aggregation import token_weights
from lens.objectives import grpo_advantages, lens_advantages, uniform_advantages
from lens.objectives.mass_share import MassShare
from lens.objectives.pass_g import PassG
from lens.objectives.rl_zvp import rl_zvp_advantages
from lens.objectives.token_lens import token_lens_advantages
from tests.support.rounding import IN_A_GROUP
from tests.support.rounds import (
    Round,
    check_a_state_goes_on,
    check_invalid_answers_take_no_part,
    check_order_does_not_matter,
    rounds,
)

T, F = True, False
PENALTY = partial(uniform_advantages, alpha=1.0)
WITHIN = {
    "uniform": PENALTY,
    "lens": partial(lens_advantages, alpha=1.0),
    "token_lens": partial(token_lens_advantages, alpha=1.0),
    "rl_zvp": rl_zvp_advantages,
}


def share_in_the_loss(round_: Round, advantages: Tensor) -> float | None:
    """The share of negative groups in the sum over tokens of |A| x its weight in the loss; None without any mass."""
    mask = round_.mask & round_.valid.unsqueeze(-1)
    weights = token_weights(mask.sum(dim=2).flatten(), "seq-mean-token-mean", max_completion_length=9)
    by_token = advantages if advantages.dim() == 3 else advantages.unsqueeze(-1)
    mass = (by_token.double().abs() * mask * weights.view(*round_.valid.shape, 1)).sum(dim=(1, 2))
    negative = torch.tensor([kind == "negative" for kind in round_.kinds])
    return None if mass.sum() == 0 else (mass[negative].sum() / mass.sum()).item()


def test_two_rounds_by_hand():
    share = MassShare(PENALTY, share=0.2, decay=0.5)
    lengths = torch.ones(2, 2, dtype=torch.int64)
    half = 0.5 / (math.sqrt(0.5) + 1e-6)
    # S = 2 * half = sqrt(2), N = 2 * 1/2 = 1; 0.2/0.8 of S/N is sqrt(2)/4, and the penalty is 1/2.
    first = share(torch.tensor([[T, F], [F, F]]), lengths=lengths)
    expected = [[half, -half], [-math.sqrt(2) / 8] * 2]
    torch.testing.assert_close(first, torch.tensor(expected), atol=4 * IN_A_GROUP, rtol=0)
    # Then S = 2 sqrt(2) and N = 0, over both rounds (sqrt(2)/4 + 2 sqrt(2)/2) / (1/4 + 0), in which weights cancel.
    share(torch.tensor([[T, F], [F, T]]), lengths=lengths)
    averages = share.state_dict()
    assert averages["others"] / averages["negative"] == pytest.approx(5 * math.sqrt(2), rel=1e-5)


@given(rounds(), st.sampled_from(list(WITHIN)), st.sampled_from([0.05, 0.18, 0.4]))
def test_without_memory_each_round_has_the_share(round_, name, share):
    """By the weights of the loss, of which the controller knows nothing."""
    inside = round_.run(WITHIN[name])
    before = share_in_the_loss(round_, inside)
    advantages = round_.run(MassShare(WITHIN[name], share=share, decay=0.0, max_scale=1e9))
    after = share_in_the_loss(round_, advantages)
    if before is None or before == 1:  # no mass, or none outside negative groups
        assert after is None
    else:
        assert after == pytest.approx(0 if before == 0 else share, abs=200 * IN_A_GROUP)


@given(rounds(), st.sampled_from(list(WITHIN)))
def test_only_negative_groups_change_and_all_by_one_number(round_, name):
    inside, advantages = round_.run(WITHIN[name]), round_.run(MassShare(WITHIN[name]))
    negative = torch.tensor([kind == "negative" for kind in round_.kinds])
    assert torch.equal(advantages[~negative], inside[~negative])
    before, after = inside[negative].double(), advantages[negative].double()
    if (before != 0).any():
        scale = after.abs().sum() / before.abs().sum()
        torch.testing.assert_close(after, scale * before, atol=scale.item() * IN_A_GROUP, rtol=4 * IN_A_GROUP)


@given(st.lists(rounds(), min_size=2, max_size=4), st.sampled_from([0.5, 0.9]))
def test_averages_over_rounds_agree_with_plain_python(several, decay):
    share = MassShare(PENALTY, share=0.18, decay=decay, max_scale=5.0)
    others, negative = [], []
    for round_ in several:
        mass = round_.run(PENALTY).double().abs().sum(dim=1).tolist()
        kinds = round_.kinds
        others.append(sum(m for m, kind in zip(mass, kinds, strict=True) if kind != "negative"))
        negative.append(sum(m for m, kind in zip(mass, kinds, strict=True) if kind == "negative"))
        ages = range(len(others) - 1, -1, -1)
        s, n = (sum(m * decay**age for m, age in zip(masses, ages, strict=True)) for masses in (others, negative))
        scale = 0.0 if others[-1] == 0 or n == 0 else min(5.0, 0.18 / 0.82 * s / n)
        actual = round_.run(share)
        for q, kind in enumerate(kinds):
            if kind == "negative":
                expected = [-scale / round_.valid[q].sum().item() * right for right in round_.valid[q].tolist()]
                assert actual[q].tolist() == pytest.approx(expected, rel=1e-4, abs=IN_A_GROUP)


@pytest.mark.parametrize("alpha", [0.01, 1.0, 40.0])
def test_the_weight_inside_cancels(alpha):
    correct, lengths = torch.tensor([[T, F, F], [F, F, F]]), torch.ones(2, 3, dtype=torch.int64)
    share = MassShare(partial(uniform_advantages, alpha=alpha), max_scale=1e6)
    expected = MassShare(PENALTY, max_scale=1e6)(correct, lengths=lengths)
    torch.testing.assert_close(share(correct, lengths=lengths), expected, atol=4 * IN_A_GROUP, rtol=0)


def test_the_scale_has_an_upper_limit():
    correct, lengths = torch.tensor([[T, F, F], [F, F, F]]), torch.ones(2, 3, dtype=torch.int64)
    advantages = MassShare(partial(uniform_advantages, alpha=0.003), max_scale=2.0)(correct, lengths=lengths)
    assert advantages[1].tolist() == pytest.approx([-0.002] * 3, abs=IN_A_GROUP)


def test_a_round_of_negative_groups_alone_teaches_nothing():
    wrong, lengths = torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.int64)
    share = MassShare(PENALTY)
    assert share(wrong, lengths=lengths).tolist() == [[0.0] * 3] * 2
    mixed = torch.tensor([[T, F, F], [F, F, F]])
    assert (share(mixed, lengths=lengths)[1] < 0).all()
    assert share(wrong, lengths=lengths).tolist() == [[0.0] * 3] * 2


def test_a_round_without_negative_groups_stays_as_it_is():
    mixed, lengths = torch.tensor([[T, F, F], [T, T, T]]), torch.ones(2, 3, dtype=torch.int64)
    assert torch.equal(MassShare(PENALTY)(mixed, lengths=lengths), grpo_advantages(mixed))


def test_long_answers_count_as_much_as_short_ones():
    """The mass of token-level advantages is their mean, so that uniform at tokens has the scale of uniform."""
    correct = torch.tensor([[T, F], [F, F]])
    mask = torch.tensor([[[T, T, T, T], [T, F, F, F]], [[T, T, T, F], [T, F, F, F]]])
    flat = torch.full(mask.shape, -0.5)
    by_token = MassShare(WITHIN["token_lens"])(correct, lengths=mask.sum(dim=2), logprobs=flat, mask=mask)
    plain = MassShare(PENALTY)(correct, lengths=mask.sum(dim=2))
    torch.testing.assert_close(by_token, plain.unsqueeze(-1) * mask, atol=4 * IN_A_GROUP, rtol=0)


def test_answers_that_are_out_of_the_batch_stay_out():
    def without_the_first(correct: Tensor, valid: Tensor | None = None) -> Tensor:
        advantages = uniform_advantages(correct, alpha=1.0, valid=valid)
        advantages[:, 0] = math.nan
        return advantages

    correct, lengths = torch.tensor([[T, F, F], [F, F, F]]), torch.ones(2, 3, dtype=torch.int64)
    advantages = MassShare(without_the_first, share=0.5, decay=0.0)(correct, lengths=lengths)
    assert advantages[:, 0].isnan().all() and advantages[:, 1:].isfinite().all()
    assert advantages[1, 1:].abs().sum() == pytest.approx(advantages[0, 1:].abs().sum())


def asks_for_steps(correct: Tensor, *, step: int, boost: float = 1.0) -> Tensor:
    return torch.where(correct, boost * step, -1.0)


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        (partial(asks_for_steps, boost=2.0), {"correct", "step", "valid"}),
        (PassG(), {"correct", "problem_ids", "rewards", "valid"}),
        (rl_zvp_advantages, {"correct", "entropies", "mask", "rewards", "valid"}),
        (MassShare(rl_zvp_advantages), {"correct", "entropies", "mask", "rewards", "valid"}),
    ],
)
def test_it_asks_for_what_is_asked_for_inside(inside: Callable, named):
    assert MassShare(inside).inputs == named | {"lengths"}


def test_it_hands_on_what_is_asked_for_inside():
    correct, lengths = torch.tensor([[T, T]]), torch.ones(1, 2, dtype=torch.int64)
    share = MassShare(partial(asks_for_steps, boost=2.0))
    assert share(correct, lengths=lengths, step=3).tolist() == [[6.0, 6.0]]


@given(rounds(), rounds(), st.sampled_from([lambda: PENALTY, PassG, lambda: MassShare(PassG())]))
def test_a_state_in_the_middle_goes_on_bit_by_bit(first, second, make):
    check_a_state_goes_on(lambda: MassShare(make()), first, second)


@given(rounds(), st.randoms(use_true_random=False), st.sampled_from(list(WITHIN)))
def test_order_does_not_matter(round_, random, name):
    check_order_does_not_matter(lambda: MassShare(WITHIN[name]), round_, random)


@given(rounds(), st.integers(0, 2**32 - 1), st.sampled_from(list(WITHIN)))
def test_invalid_answers_take_no_part(round_, seed, name):
    check_invalid_answers_take_no_part(lambda: MassShare(WITHIN[name]), round_, seed)


@pytest.mark.parametrize(
    "options", [{"share": 1.0}, {"share": -0.1}, {"decay": 1.0}, {"decay": math.nan}, {"max_scale": -1.0}]
)
def test_values_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MassShare(PENALTY, **options)
