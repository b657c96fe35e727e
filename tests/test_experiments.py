"""The first update of every experiment of the paper, with model, engine and problems swapped for the tiny ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import make_pupil, metrics_of, run
from omegaconf import OmegaConf

SWAPPED = [
    "model=tiny",
    "sampler=transformers",
    "dataset=arithmetic",
    "dataset.arithmetic.size=200",
    "evaluation=arithmetic",
    "evaluation.sets.arithmetic.size=5",
    "evaluation.num_samples=2",
    "trainer.max_completion_length=26",
    "trainer.max_steps=1",
    "trainer.num_threads=1",
    "grader.num_workers=1",
    "tracking.wandb.mode=disabled",
]
RATES = {"llama": 3e-7, "qwen": 1e-6}


@pytest.fixture(scope="module")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pupil(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    "experiment", ["table1_llama", "table1_qwen", "table2_ablation", "table3_llama", "table3_qwen"]
)
def test_the_first_update_runs(pupil, tmp_path, experiment):
    objective = "lens_negative_only" if experiment == "table2_ablation" else "lens"
    folder = tmp_path / "run"
    overrides = [f"experiment={experiment}", f"objective={objective}", f"model.name_or_path={pupil}", *SWAPPED]
    result = run("scripts/train.py", *overrides, f"hydra.run.dir={folder}", folder=tmp_path / "logs")
    assert result.code == 0, result.stderr
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert config.trainer.learning_rate == RATES.get(experiment.split("_")[1], 3e-7)
    assert config.objective.alpha == 0.25
    (update,) = [line for line in metrics_of(folder) if "loss" in line]
    assert update["train/global_step"] == 1
    assert update["grad_norm"] > 0
    assert "a round is 128 questions x 16 answers" in result.stdout


@pytest.mark.parametrize("preset", ["fast", "overfit", "profile"])
def test_every_debug_preset_runs(pupil, tmp_path, preset):
    overrides = [f"debug={preset}", f"model.name_or_path={pupil}", f"outputs={tmp_path}", "trainer.num_threads=1"]
    if preset != "overfit":
        overrides += ["evaluation.sets.arithmetic.size=5", "dataset.arithmetic.size=20"]
    if preset == "profile":
        overrides += ["trainer.num_prompts_per_rollout=4", "trainer.num_prompts_per_step=4"]
    result = run("scripts/train.py", *overrides, folder=tmp_path / "logs")
    assert result.code == 0, result.stderr
    (folder,) = (tmp_path / "debug").iterdir()
    rewards = [line["reward"] for line in metrics_of(folder) if "reward" in line]
    if preset == "overfit":
        assert sum(rewards[-5:]) > sum(rewards[:5])
    else:
        assert len(rewards) == 2
    assert (folder / "profile.json").exists() == (preset == "profile")
