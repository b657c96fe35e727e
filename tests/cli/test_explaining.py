"""Errors in a config are one line that says what would be valid, and what an old name is called now."""

from __future__ import annotations

import pytest
from hydra.errors import ConfigCompositionException

from lens.cli.explaining import explain, list_valid_keys
from lens.errors import ConfigError
from tests.support.configs import composed


def test_valid_keys_follow_the_chosen_groups():
    keys = list_valid_keys("train", ["objective=grpo", "seed=1"])
    assert {"seed", "trainer.max_steps", "objective.eps", "evaluation.sets.arithmetic.split"} <= set(keys)
    assert "objective.alpha" not in keys
    assert "objective.alpha" in list_valid_keys("train", ["objective=lens,grpo"])
    assert "checkpoint" in list_valid_keys("evaluate", [])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.learnin_rate=1", "trainer.learnin_rate='1': no such key; did you mean optimizer.learning_rate?"),
        ("objective.alhpa=2", "objective.alhpa='2': no such key; did you mean objective.alpha?"),
        ("evaluation.sets.arithmetic.sise=5", "did you mean evaluation.sets.arithmetic.size?"),
        ("objective=lans", "objective='lans': one of grpo, lens, "),
    ],
)
def test_hydra_errors_are_explained(override, says):
    with pytest.raises(ConfigCompositionException) as error:
        composed(override)
    explained = explain(error.value, "train", [override])
    assert says in explained
    assert "\n" not in explained


def test_a_config_error_inside_another_is_what_is_told():
    inner = ConfigError("a.b", 3, "an even number")
    outer = RuntimeError("Error in call to target")
    outer.__cause__ = inner
    assert explain(outer, "train", []) == "a.b=3: an even number"
