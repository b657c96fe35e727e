"""GSPO by hand, and its token form against the loss of a whole answer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens.losses import gspo_loss
from tests.support.surrogates import rate

WIDE = {"epsilon_low": 0.2, "epsilon_high": 0.3}
ANSWERS = st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=6), min_size=1, max_size=5)


def test_the_ratio_is_the_geometric_mean_of_an_answers():
    # Ratios 1.1 and 1.2: s = sqrt(1.32). Ratios 0.5 and 2: s = 1, though each token is far off.
    log_ratios = [[math.log(1.1), math.log(1.2)], [math.log(0.5), math.log(2.0)], [0.1]]
    losses, clipped, gradient = rate(gspo_loss, log_ratios, [2.0, -1.0, -3.0], **WIDE)
    assert losses == pytest.approx([-2 * math.sqrt(1.32)] * 2 + [1.0, 1.0] + [3 * math.exp(0.1)])
    assert gradient == pytest.approx(losses)
    assert not any(clipped)


def test_an_answer_is_clipped_as_a_whole_in_the_direction_of_its_advantage():
    far = [[1.0, 0.2], [-1.0, -0.2], [1.0, 0.2], [-1.0, -0.2]]  # s = e^0.6 or e^-0.6
    losses, clipped, gradient = rate(gspo_loss, far, [1.0, -1.0, -1.0, 1.0], **WIDE)
    s = math.exp(0.6)
    assert losses == pytest.approx([-1.3, -1.3, 0.8, 0.8, s, s, -1 / s, -1 / s])
    assert clipped == [True] * 4 + [False] * 4
    assert gradient == pytest.approx([0, 0, 0, 0, s, s, -1 / s, -1 / s])


@given(ANSWERS, st.data())
def test_the_token_form_has_the_gradient_of_the_answers_own_loss(log_ratios, data):
    advantages = [data.draw(st.sampled_from([-1.5, -0.5, 0.0, 0.7, 2.0])) for _ in log_ratios]
    _, clipped, gradient = rate(gspo_loss, log_ratios, advantages, **WIDE)
    expected, held = [], []
    for answer, a in zip(log_ratios, advantages, strict=True):
        tokens = torch.tensor(answer, dtype=torch.float64, requires_grad=True)
        s = tokens.mean().exp()
        (len(answer) * -torch.minimum(s * a, s.clamp(0.8, 1.3) * a)).backward()  # the sum of its tokens' losses
        expected += tokens.grad.tolist()
        held += [bool(a * (s - 1) > 0 and not 0.8 <= s <= 1.3)] * len(answer)
    assert gradient == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert clipped == held


def test_each_token_keeps_its_own_advantage():
    losses, clipped, gradient = rate(gspo_loss, [[0.5, 0.1, 0.3]], [[1.0, -2.0, 0.0]], **WIDE)
    s = math.exp(0.3)
    assert losses == pytest.approx([-1.3, 2 * s, 0.0])
    assert gradient == pytest.approx([0.0, 2 * s, 0.0])
    assert clipped == [True, False, False]


def test_the_papers_range_clips_where_that_of_ppo_never_would():
    drift = [[0.002, -0.001, 0.0005]]  # a mean of 5e-4, just above the paper's 4e-4
    assert rate(gspo_loss, drift, [1.0]).clipped == [True] * 3
    assert rate(gspo_loss, drift, [1.0]).losses == pytest.approx([-1.0004] * 3, rel=1e-12)
    assert rate(gspo_loss, drift, [1.0], epsilon_low=0.2, epsilon_high=0.2).clipped == [False] * 3
