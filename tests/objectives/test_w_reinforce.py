"""W-REINFORCE, NSR and PSR: what each verdict gets, and what leaves the batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from lens.objectives.w_reinforce import w_reinforce_advantages

CONFIGS = Path(__file__).parents[2] / "configs"
CORRECT = torch.tensor([[True, False, False], [False, False, False], [True, True, True]])
NAN = math.nan


def options(name: str) -> dict[str, float | None]:
    """The options that a shipped config sets."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        objective = compose("train", overrides=[f"objective={name}"]).objective
    return {key: value for key, value in objective.items() if not key.startswith("_")}


@pytest.mark.parametrize(
    ("name", "right", "wrong"), [("w_reinforce", 0.1, -1.0), ("nsr", NAN, -1.0), ("psr", 1.0, NAN)]
)
def test_the_configs_give_each_verdict_a_constant_in_groups_of_every_kind(name, right, wrong):
    advantages = w_reinforce_advantages(CORRECT, **options(name))
    expected = torch.tensor([[right, wrong, wrong], [wrong] * 3, [right] * 3])
    torch.testing.assert_close(advantages, expected, atol=0, rtol=0, equal_nan=True)


def test_a_weight_of_zero_keeps_its_answers_in_the_batch():
    advantages = w_reinforce_advantages(CORRECT, right_weight=0.0)
    assert advantages.tolist() == [[0, -1, -1], [-1] * 3, [0] * 3]


def test_invalid_answers_get_zero_also_where_their_verdict_is_dropped():
    valid = torch.tensor([[False, True, False], [True, True, False], [False, True, True]])
    advantages = w_reinforce_advantages(CORRECT, right_weight=None, valid=valid)
    expected = torch.tensor([[0, -1, 0], [-1, -1, 0], [0, NAN, NAN]])
    torch.testing.assert_close(advantages, expected, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize(("right", "wrong"), [(None, None), (-0.1, 1.0), (1.0, -1.0), (None, -1.0)])
def test_weights_below_zero_and_an_empty_batch_are_refused(right, wrong):
    with pytest.raises(ValueError, match="must be at least 0 or null, and not both null"):
        w_reinforce_advantages(CORRECT, right_weight=right, wrong_weight=wrong)
