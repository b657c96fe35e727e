"""What all losses have in common, and the helpers that they share."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens.losses import (
    Surrogate,
    cispo_loss,
    gmpo_loss,
    gspo_loss,
    ppo_clip_loss,
    reinforce_loss,
    sapo_loss,
    token_weights,
    topr_loss,
)
from lens.losses.surrogate import INPUTS, average_sequences, call_surrogate, sum_sequences
from lens.objectives.inputs import find_inputs
from tests.support.surrogates import rate

LOSSES = [ppo_clip_loss, reinforce_loss, gspo_loss, cispo_loss, gmpo_loss, sapo_loss, topr_loss]
OF_WHOLE_ANSWERS = [gmpo_loss, topr_loss]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
ANSWERS = st.lists(st.lists(st.floats(-2, 2), min_size=1, max_size=6), min_size=1, max_size=5)


def some_advantages(count: int) -> list[float]:
    return [(-1) ** place * (0.3 + 0.4 * place) for place in range(count)]


@every_loss
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.floats(-8, -0.01))
@settings(max_examples=30)
def test_where_the_policy_is_the_old_one_every_gradient_is_reinforces(loss, lengths, old):
    log_ratios, advantages = [[0.0] * n for n in lengths], some_advantages(len(lengths))
    _, clipped, gradient = rate(loss, log_ratios, advantages, old=old)
    expected = [-a for n, a in zip(lengths, advantages, strict=True) for _ in range(n)]
    assert gradient == pytest.approx(expected, rel=1e-12)
    assert not any(clipped)


@every_loss
@given(ANSWERS)
@settings(max_examples=30)
def test_no_advantage_is_no_loss_and_no_gradient(loss, log_ratios):
    losses, clipped, gradient = rate(loss, log_ratios, [0.0] * len(log_ratios))
    assert not any(losses) and not any(gradient)
    if loss is not cispo_loss:  # it bounds the weight whatever the advantage
        assert not any(clipped)


@every_loss
@given(ANSWERS, st.floats(0.01, 100))
@settings(max_examples=30)
def test_a_loss_is_proportional_to_the_advantages(loss, log_ratios, factor):
    advantages = some_advantages(len(log_ratios))
    once, often = rate(loss, log_ratios, advantages), rate(loss, log_ratios, [factor * a for a in advantages])
    assert often.losses == pytest.approx([factor * x for x in once.losses], rel=1e-12)
    assert often.gradient == pytest.approx([factor * x for x in once.gradient], rel=1e-12)
    assert often.clipped == once.clipped


@every_loss
@given(ANSWERS)
@settings(max_examples=30)
def test_answers_do_not_meet(loss, log_ratios):
    """However answers are dealt to micro-batches, each has the same losses, up to a bit of torch's vector functions."""
    advantages = some_advantages(len(log_ratios))
    alone = [rate(loss, [answer], [a]) for answer, a in zip(log_ratios, advantages, strict=True)]
    together = rate(loss, log_ratios, advantages)
    for values, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert values == pytest.approx([x for part in parts for x in part], rel=1e-14)


@pytest.mark.parametrize("loss", [ppo_clip_loss, gspo_loss, gmpo_loss], ids=lambda loss: loss.__name__)
@given(ANSWERS)
@settings(max_examples=30)
def test_a_clipped_token_has_no_gradient_and_any_other_has_one(loss, log_ratios):
    _, clipped, gradient = rate(loss, log_ratios, some_advantages(len(log_ratios)))
    assert clipped == [slope == 0 for slope in gradient]


def test_a_loss_of_whole_answers_is_averaged_exactly():
    log_ratios, advantages = [[0.1, -0.2, 0.3], [0.2]], [1.0, -2.0]
    values = [-a * math.exp(sum(x) / len(x)) for x, a in zip(log_ratios, advantages, strict=True)]
    lengths = torch.tensor([3, 1])
    weights = token_weights(lengths, "seq-mean-token-mean", max_completion_length=9).repeat_interleave(lengths)
    for loss in (gmpo_loss, partial(gspo_loss, epsilon_low=0.5, epsilon_high=0.5)):
        losses = torch.tensor(rate(loss, log_ratios, advantages).losses, dtype=torch.float64)
        assert (losses * weights).sum().item() == pytest.approx(sum(values) / 2, rel=1e-12)


# --- what a loss is given ---


def test_a_loss_is_given_what_it_names_and_nothing_else():
    seen = {}

    def curious(*, old_logprobs, sequence_advantages, sequence, floor=0.5):
        seen.update(old=old_logprobs, advantages=sequence_advantages, sequence=sequence, floor=floor)
        return Surrogate(old_logprobs, old_logprobs > 0)

    logprobs, old = torch.zeros(6), -torch.arange(6.0)
    advantages = torch.tensor([1.0, 1.0, 1.0, -2.0, 0.5, 0.5])
    call_surrogate(partial(curious, floor=0.1), logprobs, old, advantages, torch.tensor([3, 1, 2]))
    assert torch.equal(seen["old"], old)
    assert seen["advantages"].tolist() == [1.0, -2.0, 0.5]
    assert seen["sequence"].tolist() == [0, 0, 0, 1, 2, 2]
    assert seen["sequence"].dtype == torch.int64
    assert seen["floor"] == 0.1
    assert find_inputs(curious, INPUTS) == {"old_logprobs", "sequence", "sequence_advantages"}


@every_loss
def test_every_loss_names_inputs_by_keyword_and_says_which_need_whole_answers(loss):
    assert ("sequence_advantages" in find_inputs(loss, INPUTS)) == (loss in OF_WHOLE_ANSWERS)
    with pytest.raises(TypeError, match="positional"):
        loss(torch.zeros(1))


# --- sums over answers ---


@given(st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=9), min_size=1, max_size=6))
def test_sums_and_means_of_each_answer(answers):
    values = torch.tensor([x for answer in answers for x in answer], dtype=torch.float64, requires_grad=True)
    sequence = torch.arange(len(answers)).repeat_interleave(torch.tensor(list(map(len, answers))))
    sums, means = sum_sequences(values, sequence), average_sequences(values, sequence)
    assert sums.tolist() == pytest.approx([math.fsum(answer) for answer in answers], rel=1e-12, abs=1e-12)
    assert means.tolist() == pytest.approx([math.fsum(a) / len(a) for a in answers], rel=1e-12, abs=1e-12)
    means.sum().backward()
    assert values.grad.tolist() == pytest.approx([1 / len(answer) for answer in answers for _ in answer])
