"""Plans with the lengths and seconds of a finished run, which a real run made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lens.commands.measured import Measured
from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.planning.engines import draw_lengths
from lens.planning.forecast import make_plan
from lens.planning.simulation import simulate_step
from tests.support.command_line import full_key, run, training


@pytest.fixture(scope="module")
def finished(pupil, logs, tmp_path_factory) -> Path:
    """A run of six updates, two a round."""
    outputs = tmp_path_factory.mktemp("measured")
    sizes = {"max_steps": 6, "num_prompts_per_rollout": 8}
    result = run(*training(pupil, outputs, "evaluation.every=0", **sizes), folder=logs)
    assert result.code == 0, result.stderr
    (folder,) = (outputs / "runs").iterdir()
    return folder


def planned(pupil: Path, *overrides: str) -> DictConfig:
    sizes = {"num_prompts_per_rollout": 8, "num_prompts_per_step": 4, "num_generations": 4, "max_steps": 6}
    typed = [f"{full_key(name)}={value}" for name, value in sizes.items()]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("plan", overrides=[f"model.name_or_path={pupil}", *typed, *overrides])


def test_a_simulation_of_the_measured_run_has_its_seconds(finished, pupil):
    measured = Measured.read(finished)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "time/step_s" in line and line["train/global_step"] > 2]
    assert len(lines) == 4 and measured.processes == 1

    def mean(phase: str) -> float:
        return sum(line.get(f"time/{phase}_s", 0) for line in lines) / 4

    rows = pd.concat([pd.read_parquet(file) for file in (finished / "rollouts").iterdir()])
    assert measured.lengths.shape == (24, 4) and measured.lengths.sum() == rows["length"].sum()
    made = make_plan(measured.put_into(planned(pupil, "disk_gbs=1e9")))
    assert made.config.mean_completion_length == round(rows["length"].mean())
    assert made.config.trained_share == pytest.approx((rows["advantage"] != 0).mean())
    step = simulate_step(made, draw_lengths(made, measured.lengths), measured.costs(made))
    assert step.sampling + step.longest_answer == pytest.approx(mean("sample"))
    assert step.update + step.largest_share == pytest.approx(mean("update") + mean("logprobs"))
    assert step.grading == pytest.approx(mean("grade"))
    assert step.total == pytest.approx(mean("step"), rel=1e-6)


def test_a_plan_on_other_sizes_keeps_what_an_answer_costs(finished, pupil):
    """Twice the questions with the same engine: twice the update, the grading and the handling."""
    measured = Measured.read(finished)
    steps = []
    for questions in (4, 8):
        sizes = f"trainer.num_prompts_per_step={questions}", f"trainer.rollouts.num_prompts_per_rollout={2 * questions}"
        made = make_plan(measured.put_into(planned(pupil, *sizes, "disk_gbs=1e9")))
        steps.append(simulate_step(made, draw_lengths(made, measured.lengths), measured.costs(made)))
    for phase in ("update", "grading"):
        assert getattr(steps[1], phase) == pytest.approx(2 * getattr(steps[0], phase))
    assert steps[1].serial - measured.seconds["sync"] == pytest.approx(2 * (steps[0].serial - measured.seconds["sync"]))


def spoilt(finished: Path, folder: Path, file: str, text: str | None) -> str:
    """A copy of the run folder in which a file has other contents, or is missing."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoints"))
    if text is None:
        shutil.rmtree(folder / file) if (folder / file).is_dir() else (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    return str(folder)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("summary.json", None, "the folder of a finished run: not finished"),
        ("rollouts", None, "the steps, the stored rollouts and the number of processes"),
        ("provenance.json", '{"machine": {}}', "number of processes of a run .'processes'."),
        ("metrics.jsonl", "{", "the steps, the stored rollouts"),
    ],
)
def test_a_run_that_cannot_tell_is_refused(finished, tmp_path, file, text, says):
    with pytest.raises(ConfigError, match=says) as error:
        Measured.read(Path(spoilt(finished, tmp_path / "run", file, text)))
    assert error.value.key == "measured" and "\n" not in str(error.value)


def test_a_run_of_another_model_is_refused(finished, pupil):
    config = OmegaConf.merge(planned(pupil), {"model": {"name_or_path": None}})
    with pytest.raises(ConfigError, match=r"must be a run of the plan's model \(539,008 parameters; it has [\d,]+\)"):
        Measured.read(finished).put_into(config)


def test_the_script_plans_with_a_measured_run(finished, pupil, tmp_path):
    sizes = [f"{full_key(name)}={value}" for name, value in (("num_prompts_per_step", 4), ("num_generations", 4))]
    command = ["scripts/plan.py", f"model.name_or_path={pupil}", *sizes, f"measured={finished}", "simulate=[1,2]"]
    result = run(*command, folder=tmp_path)
    assert result.code == 0, result.stderr
    assert f"lengths and seconds of {finished}, by 1 process(es)" in result.stdout and "no room" in result.stdout
    refused = run("scripts/plan.py", f"measured={finished / 'rollouts'}", folder=tmp_path)
    assert refused.code == 2
    assert refused.one_line().startswith(f"error: measured='{finished / 'rollouts'}': must be the folder of a finished")
