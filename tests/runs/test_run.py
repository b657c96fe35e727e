"""A run folder of another version is named as such by whoever reads its config."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lens.errors import ConfigError
from lens.runs.run import explain_unfinished, read_config
from tests.support.command_line import Result, run
from tests.support.run_folders import add_rollouts, make_run

OLD = {"seed": 0, "trainer": {"max_steps": 20, "learning_rate": 1e-4, "beta": 0.0}}


@pytest.fixture
def old_run(tmp_path) -> Path:
    """A run folder of lens 0.1, with rollouts and a checkpoint."""
    folder = make_run(tmp_path / "run", "grpo", 0)
    add_rollouts(folder, "grpo", steps=(1,))
    OmegaConf.save(OmegaConf.create(OLD), folder / ".hydra" / "config.yaml")
    (folder / "checkpoints" / "step_000020").mkdir(parents=True)
    return folder


def test_the_config_of_a_run_is_read(tmp_path):
    folder = make_run(tmp_path / "run", "grpo", 0, config={"loss": {"beta": 0.5}})
    assert read_config(folder, "run").loss.beta == 0.5


def test_the_config_of_a_run_of_lens_0_1_is_refused_by_name(old_run):
    for key in ("run", "checkpoint"):
        with pytest.raises(ConfigError, match=r"lens 0\.1 wrote it, and can read it$") as error:
            read_config(old_run, key)
        assert (error.value.key, error.value.value) == (key, str(old_run))
        assert "\n" not in str(error.value)


def refusal(result: Result, key: str, folder: Path) -> None:
    line = f"error: {key}='{folder}': must be a run folder of lens 0.2; lens 0.1 wrote it, and can read it"
    assert (result.code, result.one_line()) == (2, line)


def test_commands_that_read_a_run_of_lens_0_1_refuse_it_in_one_line(old_run, tmp_path):
    logs, outputs = tmp_path / "logs", tmp_path / "outputs"
    refusal(
        run("scripts/evaluate.py", f"checkpoint={old_run}", f"outputs={outputs}", folder=logs), "checkpoint", old_run
    )
    refusal(run("scripts/replay.py", f"run={old_run}", f"target={outputs}", folder=logs), "run", old_run)
    assert not list(outputs.rglob("*.parquet"))


def test_a_finished_run_without_a_version_is_left_out_with_the_reason(tmp_path):
    folder = make_run(tmp_path / "run", "grpo", 0)
    assert explain_unfinished(folder) is None
    (folder / "summary.json").write_text('{"step": 20, "metrics": {}}')
    assert explain_unfinished(folder) == "lens 0.1 wrote it, and can report it"
