"""Few answers of each negative group: means and variances over every draw, and that draws have their chances."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from lens.objectives.subset import reweighted, sample_negatives, sizes
from tests.support.rounding import rounding

T, F = True, False
BY = pytest.mark.parametrize("by", ["answer", "size"])
GROUP = torch.tensor([[-0.5, 0.25, 0.0, -1.0, -0.125]], dtype=torch.float64)  # one teaches nothing
GRADIENTS = torch.tensor([0.7, -1.3, 5.0, 2.1, 0.4], dtype=torch.float64)  # of each answer, for an advantage of 1
EXACT = rounding("float64", 5**3 * 5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chances_of(by: str) -> Tensor:
    """By hand: a quarter each of the four that teach, or |A| over its sum, 15/8, which is 4, 2, 0, 8, 1 15ths."""
    parts = {"answer": [1 / 4, 1 / 4, 0, 1 / 4, 1 / 4], "size": [4 / 15, 2 / 15, 0, 8 / 15, 1 / 15]}
    return torch.tensor([parts[by]], dtype=torch.float64)


def every_draw(by: str, keep: int) -> Iterator[tuple[float, Tensor]]:
    """Each outcome of drawing, as its probability and how often it has each answer [1, G]."""
    if by == "answer":
        subsets = list(itertools.combinations([0, 1, 3, 4], keep))
        for subset in subsets:
            yield 1 / len(subsets), torch.tensor([[int(n in subset) for n in range(5)]])
    else:
        chances = chances_of(by)[0].tolist()
        for draws in itertools.product([0, 1, 3, 4], repeat=keep):
            yield math.prod(chances[n] for n in draws), torch.tensor([[draws.count(n) for n in range(5)]])


@BY
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_every_advantage_is_kept_on_average(by, keep):
    outcomes = [(p, reweighted(GROUP, counts, chances_of(by), keep)) for p, counts in every_draw(by, keep)]
    assert sum(p for p, _ in outcomes) == pytest.approx(1, abs=EXACT)
    expected = sum(p * advantages for p, advantages in outcomes)
    torch.testing.assert_close(expected, GROUP, atol=EXACT, rtol=0)


@BY
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_variance_of_the_gradient_is_as_stated(by, keep):
    terms = (GROUP * GRADIENTS)[0, [0, 1, 3, 4]]
    estimates = [
        (p, (reweighted(GROUP, counts, chances_of(by), keep) * GRADIENTS).sum().item())
        for p, counts in every_draw(by, keep)
    ]
    mean = sum(p * value for p, value in estimates)
    variance = sum(p * (value - mean) ** 2 for p, value in estimates)
    if by == "answer":
        stated = 4**2 * (1 / keep - 1 / 4) * terms.var().item()
    else:
        chances = chances_of(by)[0, [0, 1, 3, 4]]
        stated = ((terms.square() / chances).sum() - terms.sum().square()).item() / keep
    assert variance == pytest.approx(stated, rel=EXACT)


def test_drawing_by_size_is_best_where_gradients_are_of_one_size():
    """No other chances have a smaller sum of (A x)^2 / p; tried against many of them."""
    terms = GROUP[0, [0, 1, 3, 4]]
    ours = (terms.square() / chances_of("size")[0, [0, 1, 3, 4]]).sum()
    others = torch.rand(1000, 4, generator=generator(), dtype=torch.float64)
    others = others / others.sum(dim=1, keepdim=True)
    assert (ours <= (terms.square() / others).sum(dim=1)).all()


@BY
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_draws_have_their_chances(by, keep):
    groups = 4000
    drawn = sample_negatives(GROUP.repeat(groups, 1), torch.ones(groups, 1, dtype=torch.bool), keep, generator(), by=by)
    seen = (drawn * keep * chances_of(by) / GROUP).nan_to_num(nan=0.0).round().int()  # back to how often
    outcomes: dict[tuple, float] = {}
    for p, counts in every_draw(by, keep):
        outcomes[tuple(counts[0].tolist())] = outcomes.get(tuple(counts[0].tolist()), 0.0) + p
    rows = [tuple(row) for row in seen.tolist()]
    assert set(rows) <= set(outcomes)
    observed = [rows.count(outcome) for outcome in outcomes]
    assert chisquare(observed, [groups * p for p in outcomes.values()]).pvalue > 0.001


@BY
def test_other_groups_and_small_ones_stay_as_they_are(by):
    advantages = torch.tensor([[1.0, -0.5, -0.5], [-0.1, -0.2, 0.0], [-0.1, -0.2, -0.3], [0.0, 0.0, 0.0]])
    negative = torch.tensor([[F], [T], [T], [T]])
    drawn = sample_negatives(advantages, negative, 2, generator(), by=by)
    assert torch.equal(drawn[[0, 1, 3]], advantages[[0, 1, 3]])
    assert 1 <= (drawn[2] != 0).sum() <= 2


@BY
def test_token_level_advantages_go_with_their_answer(by):
    advantages = -torch.rand(50, 4, 3, generator=generator(1))
    advantages[:, 0, 1:] = 0  # its one token counts, not the mean over three
    drawn = sample_negatives(advantages, torch.ones(50, 1, dtype=torch.bool), 2, generator(), by=by)
    assert torch.equal(sizes(advantages)[:, 0], -advantages[:, 0, 0].double())
    kept = (drawn != 0).any(dim=2)
    assert (kept.sum(dim=1) <= 2).all() and kept.any(dim=1).all()
    assert (drawn[~kept] == 0).all()
    factors = (drawn / advantages)[kept]
    assert ((factors - factors[:, :1]).abs().nan_to_num(nan=0.0) <= 1e-5 * factors[:, :1]).all()


@BY
def test_answers_that_are_out_of_the_batch_stay_out_and_are_never_drawn(by):
    advantages = torch.tensor([[math.nan, -0.2, -0.2, -0.2]]).repeat(100, 1)
    drawn = sample_negatives(advantages, torch.ones(100, 1, dtype=torch.bool), 1, generator(), by=by)
    assert drawn[:, 0].isnan().all()
    assert ((drawn[:, 1:] != 0).sum(dim=1) == 1).all()
    torch.testing.assert_close(drawn[:, 1:].sum(dim=1), torch.full((100,), -0.6))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 8), st.sampled_from(["answer", "size"]))
def test_what_is_left_of_any_round(seed, keep, size, by):
    draw = generator(seed)
    advantages = torch.randint(-4, 2, (6, size), generator=draw) / 4
    negative = torch.rand(6, 1, generator=draw) < 0.7
    drawn = sample_negatives(advantages, negative, keep, generator(seed), by=by)
    assert drawn.dtype == advantages.dtype and torch.equal(
        drawn, sample_negatives(advantages, negative, keep, generator(seed), by=by)
    )
    for before, after, thinned in zip(advantages, drawn, negative[:, 0].tolist(), strict=True):
        teaching = (before != 0).sum().item()
        if not thinned or teaching <= keep:
            assert torch.equal(after, before)
            continue
        assert (after[before == 0] == 0).all() and (after * before >= 0).all()
        kept = after != 0
        if by == "answer":
            assert kept.sum() == keep
            torch.testing.assert_close(after[kept], before[kept] * teaching / keep)
        else:  # each draw brings the group's whole mass over keep
            assert 1 <= kept.sum() <= keep
            assert after.abs().sum().item() == pytest.approx(before.abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize(("keep", "by", "name"), [(0, "answer", "keep"), (-1, "size", "keep"), (2, "length", "by")])
def test_values_that_make_no_sense_are_refused(keep, by, name):
    with pytest.raises(ValueError, match=f"^{name}="):
        sample_negatives(GROUP, torch.tensor([[T]]), keep, generator(), by=by)
