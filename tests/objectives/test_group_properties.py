"""What holds for every objective that compares the answers of a group: order, invalid answers, groups of one kind."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lens.objectives.grpo import grpo_advantages
from lens.objectives.max_rl import max_rl_advantages
from lens.objectives.ngrpo import ngrpo_advantages
from lens.objectives.pass_at_k import pass_at_k_advantages
from lens.objectives.qae import qae_advantages
from lens.objectives.reinforce_pp_baseline import reinforce_pp_baseline_advantages
from lens.objectives.rloo import rloo_advantages
from lens.objectives.w_reinforce import w_reinforce_advantages
from tests.support.rounding import IN_A_GROUP

Inputs = dict[str, Tensor | None]

OBJECTIVES = {
    "grpo": grpo_advantages,
    "dr_grpo": functools.partial(grpo_advantages, scale_by_std=False),
    "rloo": rloo_advantages,
    "max_rl": max_rl_advantages,
    "qae": qae_advantages,
    "pass_at_k": functools.partial(pass_at_k_advantages, k=2),
    "ngrpo": ngrpo_advantages,
    "w_reinforce": w_reinforce_advantages,
    "nsr": functools.partial(w_reinforce_advantages, right_weight=None),
    "psr": functools.partial(w_reinforce_advantages, right_weight=1.0, wrong_weight=None),
    "reinforce_pp_baseline": reinforce_pp_baseline_advantages,
    "reinforce_pp_baseline, not shifted": functools.partial(reinforce_pp_baseline_advantages, shift_mean=False),
}
GRADED = [name for name, objective in OBJECTIVES.items() if "rewards" in inspect.signature(objective).parameters]
# What is 0 in groups of equal rewards, in negative ones and in positive ones.
CENTRED = [name for name in OBJECTIVES if name not in ("ngrpo", "w_reinforce", "nsr", "psr", "reinforce_pp_baseline")]

every = pytest.mark.parametrize("name", OBJECTIVES)


def weigh(name: str, inputs: Inputs) -> Tensor:
    """The advantages, from those inputs that the objective's signature names."""
    objective: Callable[..., Tensor] = OBJECTIVES[name]
    return objective(**{key: inputs[key] for key in inspect.signature(objective).parameters if key in inputs})


@st.composite
def rounds(draw: st.DrawFn, most: int = 3) -> Inputs:
    """Up to three groups of two to eight answers. Rewards are eighths in [0, 1], so that their sums are exact."""
    shape = (draw(st.integers(1, most)), draw(st.integers(2, 8)))

    def table(values: st.SearchStrategy) -> Tensor:
        size = math.prod(shape)
        return torch.tensor(draw(st.lists(values, min_size=size, max_size=size))).view(shape)

    return {
        "correct": table(st.booleans()),
        "rewards": table(st.integers(0, 8)) / 8,
        "valid": table(st.booleans()),
        "lengths": table(st.integers(1, 50)),
    }


def some_round() -> Inputs:
    """Forty groups of six, a few of them of one kind."""
    generator = torch.Generator().manual_seed(2)
    draws = torch.rand(3, 40, 6, generator=generator)
    lengths = torch.randint(1, 50, (40, 6), generator=generator)
    return {"correct": draws[0] < 0.3, "rewards": draws[1], "valid": draws[2] < 0.8, "lengths": lengths}


@every
@settings(max_examples=20)
@given(inputs=rounds(), seed=st.integers(0, 2**31))
def test_the_order_of_answers_does_not_matter(name, inputs, seed):
    order = torch.rand(inputs["correct"].shape, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    permuted = weigh(name, {key: value.gather(1, order) for key, value in inputs.items()})
    expected = weigh(name, inputs).gather(1, order)
    torch.testing.assert_close(permuted, expected, atol=IN_A_GROUP, rtol=IN_A_GROUP, equal_nan=True)


@every
@settings(max_examples=20)
@given(inputs=rounds())
def test_nothing_of_an_invalid_answer_counts_and_it_gets_zero(name, inputs):
    correct, rewards, valid, lengths = inputs.values()
    others = {"correct": ~correct, "rewards": 3 - rewards, "lengths": lengths + 7}
    changed = {key: torch.where(valid, inputs[key], other) for key, other in others.items()}
    advantages = weigh(name, inputs)
    assert advantages.dtype == torch.float32
    assert advantages.shape == correct.shape
    assert (advantages[~valid] == 0).all()
    torch.testing.assert_close(weigh(name, changed | {"valid": valid}), advantages, atol=0, rtol=0, equal_nan=True)


@every
@settings(max_examples=20)
@given(inputs=rounds(most=1))
def test_an_invalid_answer_counts_like_none_at_all(name, inputs):
    valid = inputs["valid"]
    assume(valid.sum() >= 2)  # pass_at_k refuses a group that is smaller than a set
    alone = {key: value[valid][None] for key, value in inputs.items()}
    advantages = weigh(name, inputs)[valid][None]
    torch.testing.assert_close(advantages, weigh(name, alone), atol=IN_A_GROUP, rtol=IN_A_GROUP, equal_nan=True)


@pytest.mark.parametrize("name", CENTRED)
@settings(max_examples=20)
@given(inputs=rounds(), verdict=st.booleans(), reward=st.floats(-3, 3, width=32))
def test_groups_of_one_kind_get_exactly_zero(name, inputs, verdict, reward):
    inputs["correct"][0] = verdict
    inputs["rewards"][0] = reward
    assert (weigh(name, inputs)[0] == 0).all()


@pytest.mark.parametrize("name", GRADED)
def test_without_rewards_a_right_answer_has_reward_one(name):
    inputs = some_round()
    assert not torch.equal(weigh(name, inputs), weigh(name, inputs | {"rewards": None}))
    ones = weigh(name, inputs | {"rewards": inputs["correct"].float()})
    assert torch.equal(ones, weigh(name, inputs | {"rewards": None}))


@every
def test_without_valid_all_are_valid(name):
    inputs = some_round()
    everything = weigh(name, inputs | {"valid": torch.ones_like(inputs["valid"])})
    torch.testing.assert_close(weigh(name, inputs | {"valid": None}), everything, atol=0, rtol=0, equal_nan=True)
