"""Errors in a config are one line that says what would be valid, and what an old name is called now."""

from __future__ import annotations

import pytest
from hydra.errors import ConfigCompositionException

from lens.cli.explaining import compose_known, explain, list_keys
from lens.config.moved import MOVED_KEYS, MOVED_OPTIONS
from lens.errors import ConfigError
from tests.support.command_line import run
from tests.support.configs import composed

# Hydra may have options of the old names of its own in other groups.
OPTIONS_OF_LENS = [(group, option) for group, option in MOVED_OPTIONS if not group.startswith("hydra/")]


def explanation(override: str, name: str = "train") -> str:
    """The line that explains why Hydra refuses an override."""
    # As in a sweep, where each job has one of the values that are typed.
    with pytest.raises(ConfigCompositionException) as error:
        composed(override.split(",")[0], name=name)
    return explain(error.value, name, [override])


def test_valid_keys_follow_the_chosen_groups():
    keys = list_keys(compose_known("train", ["objective=grpo", "seed=1"]))
    assert {"seed", "trainer.max_steps", "objective.eps", "evaluation.sets.arithmetic.split"} <= set(keys)
    assert "objective.alpha" not in keys
    assert "objective.alpha" in list_keys(compose_known("train", ["objective=lens,grpo"]))
    assert "checkpoint" in list_keys(compose_known("evaluate", []))


def test_valid_keys_are_listed_although_a_choice_is_at_fault():
    keys = list_keys(
        compose_known("train", ["experiment/map=alpha", "objective=lenz", "evaluation/math=3", "model=smollm2"])
    )
    assert {"objective.alpha", "model.fetch.revision"} <= set(keys)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.learnin_rate=1", "trainer.learnin_rate='1': no such key; did you mean optimizer.learning_rate?"),
        ("objective.alhpa=2", "objective.alhpa='2': no such key; did you mean objective.alpha?"),
        ("evaluation.sets.arithmetic.sise=5", "did you mean evaluation.sets.arithmetic.size?"),
        ("objective=lans", "objective='lans': must be one of ace, dr_grpo, "),
    ],
)
def test_hydra_errors_are_explained(override, says):
    explained = explanation(override)
    assert says in explained
    assert "\n" not in explained


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("experiment/map=alpha", "experiment/map='alpha': type experiment=map/alpha"),
        ("experiment/map=alpha,long", "experiment/map='alpha,long': type experiment=map/alpha,map/long"),
        ("experiment/map=alhpa", "experiment='map/alhpa': must be one of demo, gemma3/arithmetic, league/dapo, "),
        ("experiment/mapp=alpha", "experiment/mapp='alpha': no such key; valid here: seed, "),
    ],
)
def test_an_experiment_typed_as_help_lists_it_is_answered_with_what_to_type(override, says):
    assert explanation(override).startswith(says)


def test_a_group_that_a_command_lacks_is_no_key_there():
    assert explanation("experiment=tiny", "evaluate").startswith("experiment='tiny': no such key; valid here: checkp")
    assert "no such key" in explanation("experiment/map=alpha", "evaluate")
    assert "did you mean model.lora?" in explanation("model/lora=default", "benchmark")


def test_a_config_error_inside_another_is_what_is_told():
    inner = ConfigError("a.b", 3, "an even number")
    outer = RuntimeError("Error in call to target")
    outer.__cause__ = inner
    assert explain(outer, "train", []) == "a.b=3: an even number"


@pytest.mark.parametrize("old", MOVED_KEYS)
def test_an_old_key_is_answered_with_the_new_one(old):
    assert explanation(f"{old}=1") == f"{old}='1': since version 0.2 it is {MOVED_KEYS[old]}"


@pytest.mark.parametrize(("group", "option"), OPTIONS_OF_LENS, ids=map("=".join, OPTIONS_OF_LENS))
def test_an_old_option_is_answered_with_the_new_one(group, option):
    moved = MOVED_OPTIONS[group, option]
    assert explanation(f"{group}={option}") == f"{group}={option}: since version 0.2 it is {moved}"


@pytest.mark.parametrize(
    ("override", "among", "not_among"),
    [
        ("experiment=map/midle", "demo, gemma3/arithmetic, league/dapo, league/equal_share", None),
        ("model=nope", "hf, llama3.1_8b, qwen2.5_3b", "lora/default"),  # which is a group of its own
        ("hydra/launcher=nope", "basic, local", None),  # Hydra's own besides those that are shipped
    ],
)
def test_the_options_of_a_group_are_named(override, among, not_among):
    group, option = override.split("=")
    explained = explanation(override)
    assert explained.startswith(f"{group}='{option}': must be one of ")
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
