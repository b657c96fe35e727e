"""Rows of answers in any order and groups of any size: the same advantages as the objectives give to [Q, G]."""

from __future__ import annotations

import math
import threading
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lens.integrations import group_advantages, make_objective
from lens.integrations.groups import try_objective
from lens.integrations.names import FUNCTIONS, NAMES
from lens.objectives import grpo_advantages, lens_advantages
from lens.objectives.inputs import InputError, call_by_name

LONGEST = 5
OF_THE_ROUND = {"reinforce_pp_baseline"}  # their advantages depend on other groups
RANDOM = {"lens_shuffled"}
LOCAL = sorted(set(FUNCTIONS) - OF_THE_ROUND - RANDOM)
OPTIONS = {"pass_at_k": {"k": 1}}  # k is at most the size of the largest group
PER_TOKEN = ("mask", "logprobs", "entropies", "reference_logprobs")

pytestmark = pytest.mark.filterwarnings("ignore:.*groups have one answer")


def make_rows(sizes: list[int], seed: int) -> dict[str, Any]:
    """Answers in groups of these sizes, one group after the other, with all that an objective can name."""
    generator, count = torch.Generator().manual_seed(seed), sum(sizes)
    draws = torch.rand(5, count, LONGEST, generator=generator)
    lengths = torch.randint(1, LONGEST + 1, (count,), generator=generator)
    ids = [f"question {n}" for n, size in enumerate(sizes) for _ in range(size)]
    return {
        "rewards": (draws[0, :, 0] < 0.4).float(),
        "group_ids": ids,
        "mask": torch.arange(LONGEST) < lengths[:, None],
        "logprobs": -2 * draws[1],
        "entropies": 2 * draws[2],
        "reference_logprobs": -2 * draws[3],
        "truncated": draws[4, :, 0] < 0.3,
        "problem_ids": ids,
        "step": 3,
        "max_completion_length": LONGEST,
    }


def take(rows: dict[str, Any], places: list[int]) -> dict[str, Any]:
    """Some of the rows, in this order."""
    return {
        name: value[places]
        if isinstance(value, Tensor)
        else [value[p] for p in places]
        if isinstance(value, list)
        else value
        for name, value in rows.items()
    }


def grouped(rows: dict[str, Any], size: int) -> dict[str, Any]:
    """What an objective is given in groups of one size, [Q, G]."""
    given = {name: rows[name].unflatten(0, (-1, size)) for name in (*PER_TOKEN, "rewards", "truncated")}
    lengths = given["mask"].sum(dim=-1)
    means = (given["logprobs"].double() * given["mask"]).sum(dim=-1) / lengths
    given |= {"correct": given["rewards"] == 1, "lengths": lengths, "confidence": means.exp().float()}
    given["valid"] = torch.ones_like(given["correct"])
    return given | {"problem_ids": rows["problem_ids"][::size], "step": 3, "max_completion_length": LONGEST}


def weigh(rows: dict[str, Any], name: str, **others: Any) -> Tensor:
    """The advantages under an objective of this name, without any memory."""
    return group_advantages(**rows, objective=make_objective(name, **OPTIONS.get(name, {})), **others)


groups_of_any_size = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@pytest.mark.parametrize("name", NAMES)
def test_groups_of_one_size_get_what_the_objective_gives_them(name):
    rows = make_rows([4] * 6, seed=0)
    torch.manual_seed(0)
    ours = group_advantages(**rows, objective=make_objective(name), left_out=math.nan)
    torch.manual_seed(0)
    expected = call_by_name(make_objective(name), grouped(rows, 4)).flatten(0, 1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", sorted(set(NAMES) - RANDOM))
@settings(max_examples=5)
@given(sizes=groups_of_any_size, seed=st.integers(0, 99), data=st.data())
def test_the_order_of_rows_does_not_matter(name, sizes, seed, data):
    rows = make_rows(sizes, seed)
    order = data.draw(st.permutations(range(sum(sizes))))
    shuffled = weigh(take(rows, order), name)
    torch.testing.assert_close(shuffled, weigh(rows, name)[order])


@pytest.mark.parametrize("name", LOCAL)
@settings(max_examples=5)
@given(sizes=groups_of_any_size, seed=st.integers(0, 99))
def test_groups_of_unequal_sizes_are_weighed_as_if_each_were_alone(name, sizes, seed):
    rows = make_rows(sizes, seed)
    together = weigh(rows, name)
    start = 0
    for size in sizes:
        places = list(range(start, start := start + size))
        torch.testing.assert_close(together[places], weigh(take(rows, places), name))


@pytest.mark.parametrize("name", LOCAL)
@settings(max_examples=5)
@given(sizes=groups_of_any_size, seed=st.integers(0, 99), data=st.data())
def test_an_answer_that_does_not_count_changes_nothing(name, sizes, seed, data):
    """It gets 0, and the others get what they get without it: no reward, no token, or said not to be valid."""
    rows = make_rows(sizes, seed)
    out = data.draw(st.lists(st.integers(0, sum(sizes) - 1), min_size=1, unique=True))
    how = data.draw(st.sampled_from(["reward", "mask", "valid"]))
    marked = take(rows, list(range(sum(sizes))))
    valid = torch.ones(sum(sizes), dtype=torch.bool)
    if how == "reward":
        marked["rewards"][out] = math.nan
    elif how == "mask":
        marked["mask"][out] = False
    else:
        valid[out] = False
    weighed = weigh(marked, name, valid=valid)
    assert (weighed[out] == 0).all()
    if rest := [place for place in range(sum(sizes)) if place not in out]:
        torch.testing.assert_close(weighed[rest], weigh(take(rows, rest), name))


def test_by_hand():
    """Two groups, one negative: (r - 1/2) / std, and alpha times the centred penalties -(1/2) pi / (2 max - pi)."""
    ids = torch.tensor([7, 3, 7, 3])
    confidence = torch.tensor([0.5, 0.8, 0.5, 0.4])
    weighed = group_advantages(torch.tensor([1.0, 0, 0, 0]), ids, confidence.log(), objective="uniform", alpha=1.0)
    torch.testing.assert_close(weighed, torch.tensor([0.5**0.5, -0.5, -(0.5**0.5), -0.5]), rtol=1e-5, atol=0)
    weighed = group_advantages(torch.tensor([1.0, 0, 0, 0]), ids, confidence.log(), objective="lens", alpha=1.0)
    penalties = (-0.5, -0.5 * 0.4 / 1.2)
    assert weighed[1].item() == pytest.approx((penalties[0] - penalties[1]) / 2, rel=1e-6)
    assert weighed[3].item() == -weighed[1].item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_verdicts_of_any_type_are_read(dtype):
    verdicts = [1, 0, 0, 1]
    of_floats = group_advantages(torch.tensor(verdicts).float(), [0, 0, 1, 1], objective="grpo")
    assert torch.equal(group_advantages(torch.tensor(verdicts).to(dtype), [0, 0, 1, 1], objective="grpo"), of_floats)


def test_verdicts_of_1_and_minus_1_are_those_of_1_and_0():
    rows = make_rows([4] * 3, seed=1)
    expected = group_advantages(**rows)
    assert torch.equal(group_advantages(**rows | {"rewards": 2 * rows["rewards"] - 1}), expected)


def test_means_of_log_probabilities_and_these_themselves_say_the_same():
    rows = make_rows([4] * 3, seed=2)
    lengths = rows["mask"].sum(dim=1)
    means = (rows["logprobs"] * rows["mask"]).sum(dim=1) / lengths
    by_means = group_advantages(rows["rewards"], rows["group_ids"], means, lengths)
    torch.testing.assert_close(by_means, group_advantages(**rows), rtol=0, atol=1e-6)


def test_rewards_that_are_no_verdicts_bring_a_warning_unless_the_verdicts_are_given():
    rewards, ids = torch.tensor([1.2, 0.2, 0.0, 0.2]), [0, 0, 1, 1]
    with pytest.warns(UserWarning, match="correct above 0.5"):
        read = group_advantages(rewards, ids, objective="uniform")
    correct = torch.tensor([True, False, False, False])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = group_advantages(rewards, ids, objective="uniform", correct=correct)
    assert torch.equal(read, told) and read[2] == read[3] == -0.125


def test_a_group_of_one_answer_brings_a_warning():
    with pytest.warns(UserWarning, match="1 of 2 groups have one answer"):
        assert group_advantages(torch.tensor([1.0, 0, 1]), ["a", "b", "a"], objective="grpo")[1] == 0


def test_what_an_objective_leaves_out_can_be_told_from_what_does_not_count():
    rewards = torch.tensor([1.0, 0, math.nan, 0])
    told = group_advantages(rewards, [0] * 4, objective="nsr", left_out=math.nan)
    assert told[0].isnan() and told[1:].tolist() == [-1, 0, -1]
    assert group_advantages(rewards, [0] * 4, objective="nsr").tolist() == [0, -1, 0, -1]


def test_an_object_remembers_and_a_name_cannot():
    rows = make_rows([4] * 3, seed=3)
    spo = make_objective("spo")
    first, second = (group_advantages(**rows, objective=spo) for _ in range(2))
    assert not torch.equal(first, second)
    with pytest.raises(InputError, match=r"make it once, make_objective\('spo'\)"):
        group_advantages(**rows, objective="spo")


def test_a_function_of_one_s_own():
    def mine(correct: Tensor, confidence: Tensor, valid: Tensor, *, boost: float = 1.0) -> Tensor:
        return grpo_advantages(correct, valid=valid) * (1 + boost * (1 - confidence))

    rows = make_rows([3, 2], seed=4)
    plain = group_advantages(**rows, objective="grpo")
    torch.testing.assert_close(group_advantages(**rows, objective=mine, boost=0.0), plain)
    with pytest.raises(InputError, match="returned"):
        group_advantages(**rows, objective=lambda correct: correct[0])


R, IDS = torch.tensor([1.0, 0.0, 0.0]), [0, 0, 0]
MEANS, MASK = torch.full((3,), -0.5), torch.ones(3, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "lns", "mean_logprobs": MEANS}, "objective='lns': one of ace, "),
        ({}, "needs confidence .pass mean_logprobs, or logprobs with mask"),
        ({"objective": "reinforce_pp_baseline"}, "needs lengths .pass lengths or mask"),
        ({"objective": "rl_zvp", "mask": MASK}, "needs entropies"),
        ({"objective": make_objective("share")}, "needs lengths"),
        ({"objective": make_objective("share", objective="token_lens"), "mask": MASK}, "needs logprobs"),
        ({"objective": "lens_sequence_dimp", "mean_logprobs": MEANS}, "needs lengths"),
        ({"objective": "lens_rho_one", "mean_logprobs": MEANS}, "needs lengths"),
        ({"objective": make_objective("spo")}, "needs problem_ids"),
        ({"objective": make_objective("spo"), "problem_ids": ["a"]}, "problem_ids has 1 entries, rewards 3"),
        ({"objective": "grpo", "group_ids": None}, "group_ids: None, must say for each of 3 rewards"),
        ({"objective": "grpo", "group_ids": [0, 1]}, "group_ids: 2 entries"),
        ({"objective": "grpo", "rewards": torch.ones(3, 2)}, "rewards has the shape"),
        ({"objective": "grpo", "rewards": torch.tensor([])}, "rewards has the shape"),
        ({"objective": "grpo", "rewards": torch.tensor([1.0, math.inf, 0])}, "an infinite one"),
        ({"mean_logprobs": MEANS.exp()}, "mean_logprobs: 0.6.* is not a log-probability"),
        ({"mean_logprobs": torch.full((3,), math.nan)}, "mean_logprobs: nan"),
        ({"mean_logprobs": MEANS[:2]}, r"mean_logprobs has the shape \(2,\), must be \(3,\)"),
        ({"logprobs": -torch.ones(3, 3), "mask": MASK}, r"logprobs has the shape \(3, 3\), must be \(3, 2\)"),
        ({"logprobs": torch.tensor([[-1, math.nan]] * 3), "mask": MASK}, "logprobs: NaN at a token"),
        ({"objective": "grpo", "group_ids": torch.zeros(3, 2)}, r"group_ids has entries such as \[0.0, 0.0\]"),
        ({"objective": "grpo", "alpha": 0.5}, "alpha"),
    ],
)
def test_what_cannot_be_weighed_is_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(**{"rewards": R, "group_ids": IDS} | arguments)


def test_lists_are_taken_too_and_what_comes_back_is_float32():
    as_lists = group_advantages(R.tolist(), IDS, MEANS.tolist())
    assert torch.equal(as_lists, group_advantages(R, IDS, MEANS))
    double = group_advantages(R, IDS, objective=lambda rewards: rewards.double())
    assert double.dtype == torch.float32


def test_a_value_that_is_nan_outside_the_mask_does_not_matter():
    logprobs = torch.full(MASK.shape, -1.0).masked_fill(~MASK.bool(), math.nan)
    known = group_advantages(R, IDS, logprobs=logprobs.nan_to_num(nan=0.0), mask=MASK)
    assert torch.equal(group_advantages(R, IDS, logprobs=logprobs, mask=MASK), known)


@pytest.mark.filterwarnings("error")
def test_a_group_without_an_answer_that_counts_is_not_said_to_be_alone():
    group_advantages(torch.tensor([1.0, 0.0, math.nan]), ["a", "a", "padding"], objective="grpo")


def test_a_trainers_own_keys_stand_in_the_warnings():
    with pytest.warns(UserWarning, match="1 of 1 groups have one answer: nothing to compare. Set n above 1"):
        group_advantages(torch.ones(1), ["a"], objective="grpo", keys={"group_ids": "Set n above 1"})
    with pytest.warns(UserWarning, match=r"correct above 0\.5\. Set verdict"):
        group_advantages(R * 0.7, IDS, objective="grpo", keys={"correct": "Set verdict"})


def test_an_objective_that_cannot_be_copied_can_be_tried():
    class Own:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, rewards):
            return rewards

    assert not try_objective(Own(), size=2)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_passes_a_trial_and_keeps_no_memory_of_it(name):
    objective = make_objective(name)
    before = objective.state_dict() if hasattr(objective, "state_dict") else None
    assert try_objective(objective, size=4) == (name in ("nsr", "psr"))
    assert before is None or objective.state_dict() == before


def test_a_trial_finds_options_that_the_objective_refuses():
    with pytest.raises(ValueError, match="quantile"):
        try_objective(make_objective("qae", quantile=3.0), size=4)
    try_objective(lens_advantages, size=2)
