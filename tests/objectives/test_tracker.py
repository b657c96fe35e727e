"""The memory of how often each problem was solved, against its sum written out."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens.objectives.tracker import BetaTracker
from tests.support.rounding import rounding


def test_a_problem_that_no_round_has_had_is_solved_half_the_time():
    assert BetaTracker(0.875).rates(["a", "b"]).tolist() == [[0.5], [0.5]]


def test_two_rounds_by_hand():
    tracker = BetaTracker(0.5)
    tracker.update(["a"], torch.tensor([3]), torch.tensor([4]))  # a = 1/4 + 3, b = 1/4 + 1
    assert tracker.rates(["a"]).item() == 3.25 / 4.5
    tracker.update(["a"], torch.tensor([0]), torch.tensor([2]))  # a = 13/8, b = 5/8 + 2
    assert tracker.rates(["a", "b"]).flatten().tolist() == [1.625 / 4.25, 0.5]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12), st.floats(0.1, 1))
def test_a_round_counts_decay_to_the_power_of_the_rounds_after_it(outcomes, decay):
    tracker = BetaTracker(decay)
    for won, lost in outcomes:
        tracker.update(["a"], torch.tensor([won]), torch.tensor([won + lost]))
    seen = [outcome for outcome in outcomes if sum(outcome) > 0]  # a round without a trial is none
    ages = range(len(seen) - 1, -1, -1)
    a = 0.5 * decay ** len(seen) + sum(won * decay**age for (won, _), age in zip(seen, ages, strict=True))
    b = 0.5 * decay ** len(seen) + sum(lost * decay**age for (_, lost), age in zip(seen, ages, strict=True))
    assert tracker.rates(["a"]).item() == pytest.approx(a / (a + b), rel=rounding("float64", 10 * len(outcomes)))


def test_a_problem_that_a_round_has_twice_is_one_with_both_results():
    twice, once, turned = BetaTracker(0.875), BetaTracker(0.875), BetaTracker(0.875)
    twice.update(["a", "b", "a"], torch.tensor([1, 0, 2]), torch.tensor([2, 2, 2]))
    turned.update(["a", "a", "b"], torch.tensor([2, 1, 0]), torch.tensor([2, 2, 2]))
    once.update(["a", "b"], torch.tensor([3, 0]), torch.tensor([4, 2]))
    assert twice.state_dict() == once.state_dict() == turned.state_dict()


def test_a_state_is_plain_and_goes_through_json():
    tracker, restored = BetaTracker(0.875), BetaTracker(0.875)
    tracker.update(["a", "b"], torch.tensor([1, 0]), torch.tensor([3, 3]))
    restored.load_state_dict(json.loads(json.dumps(tracker.state_dict())))
    for memory in (tracker, restored):
        memory.update(["b"], torch.tensor([1]), torch.tensor([1]))
    assert restored.state_dict() == tracker.state_dict()
    assert torch.equal(restored.rates(["a", "b", "c"]), tracker.rates(["a", "b", "c"]))


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_values_that_make_no_sense_are_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        BetaTracker(decay)
