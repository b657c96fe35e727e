"""Every experiment of the tiny model runs in every world by the same command plus world=NAME."""

from __future__ import annotations

import json
import random
import re
import subprocess

import pandas as pd
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lens.cli.entry_point import name_folder
from lens.commands.assembly import check_inputs
from lens.config.checks import check_training, check_values
from lens.config.keys import hash_config
from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.models.tiny import make_tokenizer
from lens.problems import load_problems
from lens.problems.prompts import PromptFormat, encode_problems
from lens.problems.worlds import find_world, list_worlds
from tests.support.command_line import run
from tests.support.configs import composed
from tests.support.reasoning_gym import worlds_that_can_be_made

WORLDS = sorted(file.stem for file in (CONFIGS / "world").glob("*.yaml"))
OWN = {"map/levels": ["dataset.arithmetic.levels"]}  # what an experiment sweeps of arithmetic alone
FOLDERS = [file for name in ("map", "league", "tiny") for file in (CONFIGS / "experiment" / name).glob("*.yaml")]
EXPERIMENTS = ["tiny", "demo", *sorted(str(f.relative_to(CONFIGS / "experiment").with_suffix("")) for f in FOLDERS)]
EXPERIMENTS.remove("tiny/tune")  # it chooses the learning rate on arithmetic's validation split


def test_every_world_has_a_config():
    assert list_worlds() == WORLDS


@pytest.mark.parametrize("world", [world for world in WORLDS if world != "arithmetic"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_of_the_tiny_model_composes_in_every_world(experiment: str, world: str):
    config = composed(f"experiment={experiment}", f"world={world}")
    check_values(config)
    check_training(config)
    check_inputs(config)
    assert config.model.recipe.get("world", "arithmetic") == world
    assert [name for name in config.dataset if name in WORLDS] == [*config.evaluation.sets] == [world]
    named = [key for key in config.hydra.sweeper.params or {} if "arithmetic" in key]
    assert named == OWN.get(experiment, [])


def test_arithmetic_by_name_is_arithmetic_without():
    """Runs of before keep their folders."""
    plain, named = composed("experiment=league/printed"), composed("experiment=league/printed", "world=arithmetic")
    assert hash_config(_root_=plain) == hash_config(_root_=named)
    assert plain.hydra.sweep.dir == "outputs/sweeps/league"
    assert composed("experiment=league/printed", "world=countdown").hydra.sweep.dir == "outputs/sweeps/league_countdown"
    assert (
        composed("experiment=tiny/paired", "world=countdown").hydra.sweep.dir == "outputs/sweeps/tiny_paired_countdown"
    )
    assert name_folder("tiny/paired", None) == name_folder("tiny/paired", "null") == "tiny_paired"


@pytest.mark.parametrize("world", worlds_that_can_be_made(WORLDS))
def test_prompts_and_solutions_fit_the_sizes_of_the_config(world: str):
    config, rng = composed(f"world={world}"), random.Random(0)
    longest = max(len(find_world(world, "key").teach(rng)[1].split()) for _ in range(3000)) + 1
    assert longest <= config.trainer.rollouts.max_completion_length
    problems = load_problems(world, split="test", size=300)
    _, prompts, too_long = encode_problems(problems, make_tokenizer(world), PromptFormat(**config.model.prompt))
    assert len(prompts) == 300 and too_long == 0


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["model=tiny_countdown"],
            "dataset.arithmetic.source='arithmetic': must be countdown, as the tiny model knows",
        ),
        (["dataset=countdown"], "dataset.countdown.source='countdown': must be arithmetic, as the tiny model"),
        (["evaluation=countdown"], "evaluation.sets.countdown.source='countdown': must be arithmetic"),
        (["+model.recipe.world=atlantis"], "model.recipe.world='atlantis': must be one of arithmetic, countdown"),
    ],
)
def test_a_model_of_another_world_than_its_problems_is_refused_before_it_is_made(overrides: list[str], says: str):
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}"):
        check_inputs(composed(*overrides))


def test_a_finished_model_of_another_world_is_refused_by_its_words():
    problems = load_problems("countdown", split="test", size=5)
    with pytest.raises(ConfigError, match=r"must be a model of the world countdown: its tokenizer does not know all"):
        encode_problems(problems, make_tokenizer("arithmetic"), PromptFormat())


@pytest.mark.parametrize("target", ["league", "map"])
def test_make_takes_a_world(target: str):
    told = subprocess.run(
        ["make", "-n", target, "WORLD=countdown", "VENV=v"], cwd=CONFIGS.parent, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert f"-m experiment={target}/$experiment world=countdown ||" in told.stdout
    assert f"runs=outputs/sweeps/{target}_countdown" in told.stdout
    (swept,) = re.findall(r"for experiment in ([^;]+);", told.stdout)
    assert "levels" not in swept.split()


def test_a_run_in_countdown_trains_and_judges_by_its_verifier(tmp_path):
    sizes = ["dataset.countdown.size=20", "evaluation.sets.countdown.size=5", "grader.num_workers=1"]
    recipe = ["model.recipe.steps=20", "model.recipe.batch_size=16", "debug=fast", "check_golds=true"]
    places = [f"outputs={tmp_path}", f"hydra.run.dir={tmp_path}/run"]
    result = run("scripts/train.py", "world=countdown", *recipe, *sizes, *places, folder=tmp_path / "logs")
    assert result.code == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["failing_golds"] == {"dataset": 0, "countdown": 0}
    assert {f"eval/countdown/level_{level}/pass@1" for level in range(1, 6)} <= summary["metrics"].keys()
    (answers, *_) = sorted((tmp_path / "run" / "evaluations").glob("*_completions.parquet"))
    stored = pd.read_parquet(answers)
    assert stored["answer"].str.startswith("countdown://").all()
    assert set(stored["verdict"]) <= {"correct", "incorrect", "no_answer"}


def test_seeds_take_turns_with_the_warm_starts_and_a_report_pairs_them():
    configs = [composed("experiment=tiny/worlds", "world=gym", f"seed={seed}") for seed in range(6)]
    assert [instantiate(config.model.recipe).seed for config in configs] == [0, 1, 2, 3, 0, 1]
    unresolved = [OmegaConf.to_container(config.model) for config in configs]
    assert all(model == unresolved[0] for model in unresolved)  # so they are one setting
    assert len({hash_config(_root_=config) for config in configs}) == 6
