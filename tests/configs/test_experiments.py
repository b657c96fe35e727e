"""The first update of every experiment: the paper's with tiny parts in place of its own, and the map's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lens.files import CONFIGS
from lens.models.precision import find_bfloat16_unit
from tests.support.command_line import make_pupil, metrics_of, run
from tests.support.configs import composed

SWAPPED = [
    "model=tiny",
    "sampler=transformers",
    "dataset=arithmetic",
    "dataset.arithmetic.size=200",
    "evaluation=arithmetic",
    "evaluation.sets.arithmetic.size=5",
    "evaluation.num_samples=2",
    "trainer.rollouts.max_completion_length=26",
    "trainer.max_steps=1",
    "trainer.memory.num_threads=1",
    "grader.num_workers=1",
    "tracking.wandb.mode=disabled",
]
PAPER = ("table1_llama", "table1_qwen", "table2_ablation", "table3_llama", "table3_qwen")
QUESTIONS = ["trainer.rollouts.num_prompts_per_rollout=10", "trainer.num_prompts_per_step=10"]
RATES = {"llama": 3e-7, "qwen": 1e-6}


@pytest.fixture(scope="module")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pupil(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("experiment", PAPER)
def test_the_first_update_runs(pupil, tmp_path, experiment):
    objective = "lens_negative_only" if experiment == "table2_ablation" else "lens"
    folder = tmp_path / "run"
    overrides = [f"experiment=paper/{experiment}", f"objective={objective}", f"model.name_or_path={pupil}", *SWAPPED]
    result = run("scripts/train.py", *overrides, f"hydra.run.dir={folder}", folder=tmp_path / "logs")
    assert result.code == 0, result.stderr
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert config.optimizer.learning_rate == RATES.get(experiment.split("_")[1], 3e-7)
    assert config.objective.alpha == 0.25
    (update,) = [line for line in metrics_of(folder) if "loss" in line]
    assert update["train/global_step"] == 1
    assert update["grad_norm"] > 0
    assert "a round is 128 questions x 16 answers" in result.stdout


# What each experiment of the map sweeps, at one value each; the middle's are grpo, lens and lens_strong.
CELLS = {
    "map/middle": ["objective=lens_strong"],
    "map/levels": ["dataset.arithmetic.levels=[4,5]"],
    "map/generations": ["trainer.rollouts.num_generations=16"],
    "map/updates": ["trainer.num_prompts_per_step=5"],
    "map/learning_rate": ["optimizer.learning_rate=4e-4", "objective=grpo"],
    "map/alpha": ["objective=lens", "objective.alpha=16"],
    "map/unscaled": ["objective=lens_unscaled", "objective.alpha=16"],
    "map/penalty": ["objective=uniform", "objective.alpha=4"],
    "map/entropy": ["objective=grpo", "loss.entropy_coef=0.03"],
    "map/compute": ["objective=grpo", "trainer.max_steps=1"],
    "map/long": ["objective=lens_strong", "trainer.max_steps=1"],
    "map/collapse": ["objective=lens_unscaled", "objective.alpha=4", "trainer.max_steps=1"],
    "map/warm_starts": ["objective=lens", "model.recipe.seed=1"],
}
# The other sweeps of the tiny model.
SWEEPS = {
    "tiny": ["objective=lens"],
    "demo": ["objective=lens_strong"],
    "tiny/ablation": ["objective=lens_negative_only"],
    "tiny/alpha": ["objective=lens", "objective.scale_negative=1.0"],
    "tiny/objectives": ["objective=lens_sequence_dimp"],
    "tiny/paired": ["objective=lens"],
    "tiny/tune": ["objective=grpo", "optimizer.learning_rate=1e-4", "evaluation.sets.arithmetic.split=train"],
}
WORLDS = {"tiny/worlds": ["objective=uniform", "model.recipe.seed=0"]}
LEAGUE = {
    "league/printed": ["objective=spo"],
    "league/dapo": ["objective=grpo"],
    "league/ngrpo": ["objective=ngrpo"],
    "league/equal_share": ["objective=share", "objective@objective.objective=token_lens"],
}
LARGER = ("smollm2/arithmetic", "smollm2/math", "gemma3/arithmetic")


def test_every_experiment_is_here():
    folder = CONFIGS / "experiment"
    found = {str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml")}
    paper = {f"paper/{name}" for name in PAPER}
    assert found - {"none", "paper/base"} == {*paper, *CELLS, *SWEEPS, *WORLDS, *LEAGUE, *LARGER}


@pytest.mark.parametrize("experiment", LARGER)
def test_the_first_update_of_a_pretrained_models_experiment_runs(pupil, tmp_path, experiment):
    folder = tmp_path / "run"
    prompts = [
        "model.prompt.template=chat",
        "model.prompt.max_length=64",
        "~sampler.max_logp_difference",
        "~sampler.max_mean_logp_difference",
    ]
    problems = ["dataset.arithmetic.size=20", *QUESTIONS]
    if experiment == "gemma3/arithmetic":
        prompts += ["~sampler.kv_cache_space", "model.stop=['}']"]  # vLLM's too; its vocabulary has no empty line
    if experiment == "smollm2/math":
        problems += ["~evaluation.sets.math"]  # whose size the experiment sets
    overrides = [f"experiment={experiment}", "objective=lens", f"model.name_or_path={pupil}", *SWAPPED, *prompts]
    result = run("scripts/train.py", *overrides, *problems, f"hydra.run.dir={folder}", folder=tmp_path / "logs")
    assert result.code == 0, result.stderr
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert composed(f"experiment={experiment}").trainer.memory.autocast == "auto"
    assert config.trainer.memory.autocast == ("bfloat16" if find_bfloat16_unit() else None)
    assert config.trainer.rollouts.num_generations == 8
    (update,) = [line for line in metrics_of(folder) if "loss" in line]
    assert update["grad_norm"] > 0


@pytest.mark.parametrize("experiment", {**CELLS, **SWEEPS, **WORLDS, **LEAGUE})
def test_the_first_update_of_every_experiment_of_the_tiny_model_runs(pupil, tmp_path, experiment):
    known = [f"model.name_or_path={pupil}", "dataset.arithmetic.size=20"]  # problems that the pupil knows by heart
    known += QUESTIONS
    smaller = ["evaluation.sets.arithmetic.size=5", "evaluation.num_samples=2", "trainer.max_steps=1"]
    given = [f"experiment={experiment}", *known, *smaller]
    folder = tmp_path / "run"
    swept = (CELLS | SWEEPS | WORLDS | LEAGUE)[experiment]
    overrides = dict(override.split("=", 1) for override in [*given, *swept, f"hydra.run.dir={folder}"])
    result = run("scripts/train.py", *(f"{k}={v}" for k, v in overrides.items()), folder=tmp_path / "logs")
    assert result.code == 0, result.stderr
    (update,) = [line for line in metrics_of(folder) if "loss" in line]
    assert update["grad_norm"] > 0
    assert (folder / "wandb").exists() == (experiment in SWEEPS)
    trained = update["completions/trained"]
    if experiment in ("map/entropy", "league/dapo"):  # the bonus is of every answer; every kept group teaches
        assert trained == 80
    elif "objective=grpo" in swept:
        assert trained < 80


def test_the_map_is_one_command_over_all_of_its_experiments():
    recipe = subprocess.run(["make", "-n", "map", "VENV=v"], cwd=CONFIGS.parent, capture_output=True, text=True)
    assert recipe.returncode == 0, recipe.stderr
    experiments = {f"map/{file.stem}" for file in (CONFIGS / "experiment" / "map").glob("*.yaml")}
    swept = re.search(
        r"for experiment in ([^;]+); do \S+ scripts/train\.py -m experiment=map/\$experiment ", recipe.stdout
    )
    names = [f"map/{name}" for name in swept[1].split()]
    assert len(names) == len(set(names)) and set(names) == experiments
    assert names[0] == "map/middle"
    assert experiments == set(CELLS)
    assert "scripts/report.py runs=outputs/sweeps/map" in recipe.stdout


def test_a_cell_of_the_map_is_confirmed_on_seeds_that_the_map_does_not_have():
    cell = "experiment=map/levels dataset.arithmetic.levels=[4,5]"
    recipe = subprocess.run(["make", "-n", "confirm", f"OF={cell}"], cwd=CONFIGS.parent, capture_output=True, text=True)
    assert recipe.returncode == 0, recipe.stderr
    assert f"train.py -m {cell} seed='range(100,120)' hydra.sweep.dir=outputs/sweeps/confirm" in recipe.stdout
    assert "scripts/report.py runs=outputs/sweeps/confirm" in recipe.stdout


@pytest.mark.parametrize("preset", ["fast", "overfit", "profile"])
def test_every_debug_preset_runs(pupil, tmp_path, preset):
    overrides = [
        f"debug={preset}",
        f"model.name_or_path={pupil}",
        f"outputs={tmp_path}",
        "trainer.memory.num_threads=1",
    ]
    if preset != "overfit":
        overrides += ["evaluation.sets.arithmetic.size=5", "dataset.arithmetic.size=20"]
    if preset == "profile":
        overrides += ["trainer.rollouts.num_prompts_per_rollout=4", "trainer.num_prompts_per_step=4"]
    result = run("scripts/train.py", *overrides, folder=tmp_path / "logs")
    assert result.code == 0, result.stderr
    (folder,) = (tmp_path / "debug").iterdir()
    rewards = [line["reward"] for line in metrics_of(folder) if "reward" in line]
    if preset == "overfit":
        assert sum(rewards[-5:]) > sum(rewards[:5])
    else:
        assert len(rewards) == 2
    assert (folder / "profile.json").exists() == (preset == "profile")
