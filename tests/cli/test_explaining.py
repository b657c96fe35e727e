"""Errors in a config are one line that says what would be valid, and what an old name is called now."""

from __future__ import annotations

import pytest
from hydra.errors import ConfigCompositionException

from lens.cli.explaining import explain, list_valid_keys
from lens.config.moved import MOVED_KEYS, MOVED_OPTIONS
from lens.errors import ConfigError
from tests.support.command_line import run
from tests.support.configs import composed

# Hydra may have options of the old names of its own in other groups.
OPTIONS_OF_LENS = [(group, option) for group, option in MOVED_OPTIONS if not group.startswith("hydra/")]


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


@pytest.mark.parametrize("old", MOVED_KEYS)
def test_an_old_key_is_answered_with_the_new_one(old):
    with pytest.raises(ConfigCompositionException) as error:
        composed(f"{old}=1")
    assert explain(error.value, "train", [f"{old}=1"]) == f"{old}='1': since version 0.2 it is {MOVED_KEYS[old]}"


@pytest.mark.parametrize(("group", "option"), OPTIONS_OF_LENS, ids=map("=".join, OPTIONS_OF_LENS))
def test_an_old_option_is_answered_with_the_new_one(group, option):
    with pytest.raises(ConfigCompositionException) as error:
        composed(f"{group}={option}")
    explained = explain(error.value, "train", [f"{group}={option}"])
    assert explained == f"{group}={option}: since version 0.2 it is {MOVED_OPTIONS[group, option]}"


@pytest.mark.parametrize(
    ("override", "among", "not_among"),
    [
        ("experiment=map/midle", "demo, map/alpha, map/collapse", None),
        ("model=nope", "hf, llama3.1_8b, qwen2.5_3b", "lora/default"),  # which is a group of its own
        ("hydra/launcher=nope", "basic, local", None),  # Hydra's own besides those that are shipped
    ],
)
def test_the_options_of_a_group_are_named(override, among, not_among):
    with pytest.raises(ConfigCompositionException) as error:
        composed(override)
    group, option = override.split("=")
    explained = explain(error.value, "train", [override])
    assert explained.startswith(f"{group}='{option}': one of ")
    assert among in explained
    assert not_among is None or not_among not in explained


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("train.py trainer.learning_rate=1e-4", "trainer.learning_rate='1e-4': since version 0.2 it is optimizer."),
        ("train.py +trainer.beta=0.1", "trainer.beta=0.1: since version 0.2 it is loss.beta"),
        ("train.py experiment=tiny_map", "experiment=tiny_map: since version 0.2 it is experiment=map/middle"),
        ("train.py trainer=paper", "trainer=paper: since version 0.2 it is experiment=paper/base"),
        ("plan.py experiment=table1_llama", "experiment=table1_llama: since version 0.2 it is experiment=paper/table1"),
        (
            "evaluate.py checkpoint=x trainer.max_completion_length=8",
            "trainer.max_completion_length='8': since version 0.2 it is trainer.rollouts.max_completion_length",
        ),
    ],
)
def test_who_types_an_old_name_is_told_the_new_one_in_one_line(logs, tmp_path, command, line):
    script, *overrides = command.split()
    result = run(f"scripts/{script}", *overrides, f"outputs={tmp_path / 'outputs'}", folder=logs)
    assert result.code == 2
    assert result.one_line().startswith(f"error: {line}")
    assert not (tmp_path / "outputs").exists()
