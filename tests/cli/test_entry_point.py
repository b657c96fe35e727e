"""The command line: help, evaluation, the tiny model, and the parts that this is made of."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from lens.cli.entry_point import remove_half_made
from lens.models.precision import find_bfloat16_unit
from tests.support.command_line import Command, environment, run, training


def test_only_what_hydra_made_is_removed(tmp_path):
    half_made, whole = tmp_path / "runs" / "half", tmp_path / "other" / "runs" / "whole"
    for folder in (half_made, whole):
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").touch()
    (whole / "metrics.jsonl").touch()
    for folder in (half_made, whole):
        remove_half_made(folder)
    assert not (tmp_path / "runs").exists()
    assert (whole / ".hydra" / "config.yaml").exists()


def test_help_names_groups_and_keys(logs):
    result = run("scripts/train.py", "--help", folder=logs, real=True)
    assert result.code == 0, result.stderr
    for group in ("objective", "dataset", "model", "evaluation", "experiment"):
        assert f"{group}: " in result.stdout
    for text in ("lens_shuffled", "num_generations: 8", "-m objective=grpo,lens", 'eval "$(python', "--cfg job"):
        assert text in result.stdout


def test_the_composed_config_is_printed(logs, tmp_path):
    result = run("scripts/train.py", "--cfg", "job", "objective=grpo", "seed=7", f"outputs={tmp_path}", folder=logs)
    assert result.code == 0, result.stderr
    config = OmegaConf.create(result.stdout)
    assert config.seed == 7
    assert config.objective._target_ == "lens.objectives.grpo_advantages"
    assert config.trainer.rollouts.num_generations == 8
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ("objective=grpo --cfg job --resolve", "group: tiny"),
        ("--cfg job --package objective objective=lens_strong", "alpha: 4.0"),
        ("--cfg hydra --package hydra.launcher", "n_jobs: ${jobs}"),
        ("--cfg hydra --package hydra.launcher hydra/launcher=basic", "BasicLauncher"),
        ("--cfg hydra --package hydra.launcher hydra/launcher=submitit_local", "timeout_min: 10080"),
        ("--cfg hydra --package hydra.launcher hydra/launcher=submitit_slurm", "max_num_timeout: 3"),
        ("objective=grpo --info defaults-tree", "objective: grpo"),
        ("--hydra-help", "Hydra"),
    ],
)
def test_hydra_s_own_options_work_before_and_after_overrides(logs, arguments, printed):
    result = run("scripts/train.py", *arguments.split(), folder=logs)
    assert result.code == 0, result.stderr
    assert printed in result.stdout


def test_keys_are_completed(logs):
    env = environment(COMP_LINE="python scripts/train.py trainer.max_st", COMP_POINT="38")
    result = run("scripts/train.py", "--shell-completion", "query=bash", folder=logs, env=env)
    assert result.code == 0, result.stderr
    assert "trainer.max_steps=" in result.stdout.split()


@pytest.mark.parametrize("given", [None, "active"])
def test_threads_sleep_while_they_wait_unless_told_otherwise(logs, given):
    env = environment(OMP_DISPLAY_ENV="true", OMP_WAIT_POLICY=given)  # the runtime itself says what it has read
    result = run("scripts/train.py", "seed=-1", folder=logs, env=env, real=True)
    assert result.code == 2
    policies = re.findall(r"OMP_WAIT_POLICY = '(\w+)'", result.stderr)
    assert policies and set(policies) == {(given or "passive").upper()}


THE_TWENTY = ["evaluation.sets.arithmetic.split=train", "evaluation.sets.arithmetic.size=20"]


@pytest.fixture(scope="module")
def trained(pupil, logs, tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("trained")
    command = training(pupil, outputs, "evaluation.every=0", max_steps=2)
    result = run(*command, f"hydra.run.dir={outputs / 'run'}", folder=logs)
    assert result.code == 0, result.stderr
    return outputs / "run"


def evaluate(checkpoint: Path, outputs: Path, logs: Path, *overrides: str, **options):
    """The result, the rows and the metrics of an evaluation."""
    command = [
        "scripts/evaluate.py",
        f"checkpoint={checkpoint}",
        f"outputs={outputs}",
        *THE_TWENTY,
        "evaluation.num_samples=4",
        *overrides,
    ]
    result = run(*command, folder=logs, **options)
    assert result.code == 0, result.stderr
    (folder,) = (outputs / "evaluations").iterdir()
    assert str(folder) in result.stdout
    return result, pd.read_parquet(folder / "evaluation.parquet"), json.loads((folder / "summary.json").read_text())


def test_a_run_and_its_checkpoint_evaluate_alike(trained, logs, tmp_path):
    result, rows, summary = evaluate(trained, tmp_path / "a", logs, real=True)
    checkpoint = trained / "checkpoints" / "step_000002"
    _, same_rows, same_summary = evaluate(checkpoint, tmp_path / "b", logs)
    pd.testing.assert_frame_equal(rows, same_rows)
    assert summary["metrics"] == same_summary["metrics"]
    assert summary["checkpoint"] == str(checkpoint)
    assert len(rows) == 20
    assert 0 < rows["correct"].sum() < 80

    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    printed = {row[1]: row for row in cells}
    assert {"all", *(f"level_{level}" for level in range(1, 6)), "levels_4-5"} <= printed.keys()
    for part, of_part in (("all", rows), ("level_1", rows[rows["level"] == 1])):
        mean, low, high = map(float, re.fullmatch(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", printed[part][4]).groups())
        assert mean == pytest.approx(100 * of_part["correct"].sum() / of_part["n"].sum(), abs=0.051)
        assert low <= mean <= high
        assert (low < high) == (of_part["correct"].nunique() > 1)  # a bootstrap over problems has no width else
        assert printed[part][2] == str(len(of_part))


def test_evaluations_that_start_together_have_a_folder_each(pupil, logs, tmp_path):
    keys = [f"checkpoint={pupil}", f"outputs={tmp_path}", *THE_TWENTY, "evaluation.num_samples=1"]
    prompt = ["model.prompt.instruction=null", "trainer.rollouts.max_completion_length=26"]
    both = [Command("scripts/evaluate.py", *keys, *prompt, folder=logs) for _ in range(2)]
    assert [command.wait().code for command in both] == [0, 0]
    folders = list((tmp_path / "evaluations").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert re.fullmatch(r"[\d-]{10}_[\d-]{8}-\d{6}", folder.name)
        assert (folder / "summary.json").exists()


def test_any_model_is_evaluated(pupil, logs, tmp_path):
    overrides = [
        "model.prompt.instruction=null",
        "trainer.rollouts.max_completion_length=26",
        "evaluation.by_level=false",
        "model.dtype=auto",
    ]
    result, rows, summary = evaluate(pupil, tmp_path, logs, *overrides)
    assert summary["dtype"] == ("bfloat16" if find_bfloat16_unit() else "float32")
    assert f"model.dtype=auto: {summary['dtype']}, as " in result.stdout
    assert rows["correct"].sum() > 0
    assert summary["metrics"]["eval/arithmetic/pass@1"] == pytest.approx(rows["correct"].sum() / 80)
    assert not [name for name in summary["metrics"] if "level" in name]
    assert "level_1" not in result.stdout


def test_the_tiny_model_is_made_once(logs, tmp_path):
    keys = ["model.recipe.steps=3", "model.recipe.batch_size=4", "model.recipe.num_layers=1", f"outputs={tmp_path}"]
    results = [run("scripts/make_tiny.py", *keys, folder=logs) for _ in range(2)]
    assert [result.code for result in results] == [0, 0], results
    folders = [result.stdout.splitlines()[-1] for result in results]
    assert folders[0] == folders[1]
    assert Path(folders[0]).parent == tmp_path / "models"
    assert "Making the tiny model" in results[0].stdout
    assert "Making" not in results[1].stdout
    assert json.loads((Path(folders[0]) / "recipe.json").read_text())["steps"] == 3
    other = run("scripts/make_tiny.py", *keys, "model.recipe.seed=1", folder=logs)
    assert other.stdout.splitlines()[-1] != folders[0]


# --- these tests themselves ------------------------------------------------------------------------------------------


def test_the_environment_of_these_tests_has_no_wandb_account(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert not [name for name in environment() if name.startswith("WANDB")]
    assert environment(HOME=None).get("HOME") is None
    assert environment()["PATH"] == os.environ["PATH"]
