"""Killed with SIGKILL at any point and started again, a run ends as one that was never killed.

``make kill-test`` kills twenty times at random; LENS_KILLS says how often.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.command_line import (
    Command,
    assert_one_wandb_run,
    assert_same_end,
    environment,
    make_pupil,
    run,
    training,
)

KILLS = int(os.environ.get("LENS_KILLS", "3"))
MAX_STEPS = 6

# The nth call of a function, and what the run does then.
POINTS = {
    "sampling": "lens.sampling.transformers:sample_tokens:100",
    "grading": "lens.grading.pool:Grader.grade:4",
    "the gradient": "lens.training.update:Loss.accumulate:4",
    "the update": "torch.optim.adam:Adam.step:4",
    "after the update": "lens.runs.tracker:Tracker.log:6",
    "evaluating": "lens.evaluation.evaluator:Evaluator.evaluate:3",
    "after the evaluation": "lens.training.trainer:Trainer._save:2",
    "storing answers": "lens.runs.tracker:write_parquet:9",
    "writing the first checkpoint": "torch:save:1",
    "writing another checkpoint": "lens.runs.checkpoints:flush_to_disk:13",
    "before the checkpoint has its name": "pathlib:Path.rename:2",
    "dropping the old checkpoint": "lens.runs.checkpoints:drop_checkpoint:1",
    "before W&B is fed": "lens.runs.tracker:Tracker.commit:2",
    "before the end of W&B": "wandb:Run.finish:1",
}


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[object]:
    """An objective that draws and remembers, two updates a round, checkpoints inside rounds, the best one kept."""
    pupil = make_pupil(tmp_path_factory.getbasetemp())
    sizes = {"max_steps": MAX_STEPS, "num_prompts_per_rollout": 8, "checkpoint_every": 3, "learning_rate": 1e-3}
    objective = ["objective=share", "objective@objective.objective=lens_shuffled"]
    return training(pupil, tmp_path_factory.mktemp("outputs"), *objective, **sizes, keep_best="pass@1")


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def whole(command, logs, tmp_path_factory) -> tuple[Path, float]:
    """The folder of a run that was never killed, and the seconds that it took."""
    folder, started = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    result = run(*command, f"hydra.run.dir={folder}", folder=logs)
    assert result.code == 0, result.stderr
    return folder, time.monotonic() - started


def assert_goes_on(command, folder: Path, whole: Path, logs: Path) -> None:
    rest = run(*command, f"hydra.run.dir={folder}", folder=logs)
    assert rest.code == 0, rest.stderr
    assert_same_end(folder, whole)
    assert_one_wandb_run(folder)
    assert not list(folder.rglob("*.unfinished"))


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_a_run_killed_while_it_does_something_ends_the_same(command, whole, logs, tmp_path, point):
    folder = tmp_path / "run"
    killed = run(*command, f"hydra.run.dir={folder}", folder=logs, env=environment(KILL_AT=point))
    assert killed.code == -signal.SIGKILL, killed.stderr
    assert_goes_on(command, folder, whole[0], logs)


@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_killed_at_a_random_moment_ends_the_same(command, whole, logs, tmp_path, number):
    total = lines_in(whole[0])
    for attempt in range(10):  # a run that has ended before its moment is none that was killed
        folder = tmp_path / f"run{attempt}"
        reached, moment = random.randrange(total), random.uniform(0, whole[1] / total / 2)
        running = Command(*command, f"hydra.run.dir={folder}", folder=logs)
        running.wait_until(lambda folder=folder, reached=reached: lines_in(folder) >= reached)
        time.sleep(moment)
        if running.is_running():
            running.signal(signal.SIGKILL)
        if (code := running.wait().code) != 0:
            break
    assert code == -signal.SIGKILL
    print(f"kill {number + 1}: {moment:.2f} s after line {reached}, at line {lines_in(folder)} of {total}")
    assert_goes_on(command, folder, whole[0], logs)


def lines_in(folder: Path) -> int:
    """How many lines metrics.jsonl has."""
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0
