"""Runs that are told to stop, or cannot write: their last checkpoint is whole, and they go on to the same end."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from lens.runs.checkpoints import load_state
from tests.support.command_line import (
    Command,
    assert_one_wandb_run,
    assert_same_end,
    run,
    steps_in,
    training,
)

STEPS = 16


@pytest.fixture(scope="module")
def long_command(pupil, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("stopped")
    keys = {"max_steps": STEPS, "checkpoint_every": 4, "rollouts_every": 4}
    return training(pupil, outputs, "evaluation.every=8", **keys), outputs


@pytest.fixture(scope="module")
def uninterrupted(long_command, logs) -> Path:
    command, outputs = long_command
    result = run(*command, f"hydra.run.dir={outputs / 'whole'}", folder=logs)
    assert result.code == 0, result.stderr
    return outputs / "whole"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_ends_the_same(long_command, uninterrupted, logs, tmp_path, number):
    command, _ = long_command
    named = [f"hydra.run.dir={tmp_path / 'named'}"] if number == signal.SIGINT else [f"outputs={tmp_path}"]
    running = Command(*command, *named, folder=logs)

    def folder() -> Path:
        return next(iter(tmp_path.glob("runs/*")), tmp_path / "named")

    running.wait_until(lambda: steps_in(folder()) >= 2)
    running.signal(number)
    result = running.wait()
    assert result.code == 130, result.stderr
    line = result.one_line()
    assert line.startswith("stopped: ")
    (checkpoint,) = (folder() / "checkpoints").iterdir()
    stopped_at = int(checkpoint.name.removeprefix("step_"))
    assert 2 <= stopped_at < STEPS
    assert f"step {stopped_at} of {STEPS}" in line
    assert steps_in(folder()) == stopped_at
    assert not (folder() / "summary.json").exists()
    assert ("Stopping after this step" if number == signal.SIGINT else "Stopping now") in result.stdout

    program, *again = shlex.split(line.partition("to resume: ")[2])
    assert program == "python"
    rest = run(*again, folder=logs)
    assert rest.code == 0, rest.stderr
    assert f"Resuming from step {stopped_at}" in rest.stdout
    assert_same_end(folder(), uninterrupted)


@pytest.fixture
def waiting(tmp_path, long_command):
    """(the file that a run's sampler waits for to be removed, the command, its run folder)."""
    command, _ = long_command
    file, folder = tmp_path / "wait", tmp_path / "run"
    sampler = ["sampler._target_=tests.support.faults.WaitingSampler", f"+sampler.while_exists={file}"]
    return file, [*command, *sampler, f"hydra.run.dir={folder}"], folder


def test_a_second_ctrl_c_stops_at_once_and_the_folder_stays_resumable(waiting, uninterrupted, logs):
    file, command, folder = waiting
    running = Command(*command, folder=logs)
    running.wait_until(lambda: steps_in(folder) >= 5)
    file.touch()
    running.wait_until(file.with_suffix(".reached").exists)  # no step ends from now on
    running.signal(signal.SIGINT)
    running.wait_until(lambda: "Ctrl-C again stops at once" in running.stdout.read_text())
    time.sleep(1)
    before, reached = sorted((folder / "checkpoints").rglob("*")), steps_in(folder)
    running.signal(signal.SIGINT)
    result = running.wait()
    assert result.code == 130, result.stderr
    line = result.one_line()
    assert line.startswith("stopped: ")
    assert f"hydra.run.dir={folder}" in line
    assert sorted((folder / "checkpoints").rglob("*")) == before
    assert steps_in(folder) == reached

    file.unlink()
    rest = run(*command, "resume=must", folder=logs)
    assert rest.code == 0, rest.stderr
    assert_same_end(folder, uninterrupted)


@pytest.mark.parametrize("step", [0, 5, 8])  # before the first evaluation, in sampling, in an evaluation
def test_sigterm_writes_a_checkpoint_at_once_however_long_a_step_is(waiting, uninterrupted, logs, step):
    file, command, folder = waiting
    if step == 0:
        file.touch()
    running = Command(*command, folder=logs)
    running.wait_until(lambda: steps_in(folder) >= step if step else "Plan:" in running.stdout.read_text())
    file.touch()
    time.sleep(1)
    asked = time.monotonic()
    running.signal(signal.SIGTERM)
    result = running.wait()
    assert time.monotonic() - asked < 30
    assert file.exists()
    assert result.code == (130 if step or "Stopping now" in result.stdout else -signal.SIGTERM), result.stderr
    if result.code == 130:
        reached = steps_in(folder)
        assert f"at step {reached} of {STEPS}" in result.one_line()
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step_{reached:06d}"]

    file.unlink()
    rest = run(*command, folder=logs)
    assert rest.code == 0, rest.stderr
    assert_same_end(folder, uninterrupted)
    assert_one_wandb_run(folder)


def test_sigterm_to_all_of_its_processes_which_slurm_sends_stops_a_run_that_goes_on(waiting, uninterrupted, logs):
    file, command, folder = waiting
    running = Command(*command, folder=logs)
    running.wait_until(lambda: steps_in(folder) >= 5)
    file.touch()
    running.wait_until(file.with_suffix(".reached").exists)
    for process in [*descendants(running.process.pid), running.process.pid]:
        os.kill(process, signal.SIGTERM)
    result = running.wait()
    assert result.code == 130, result.stderr
    assert f"stopped: at step {steps_in(folder)} of {STEPS}" in result.stderr
    assert "W&B's process has been ended too" in result.stdout

    file.unlink()
    rest = run(*command, folder=logs)
    assert rest.code == 0, rest.stderr
    assert_same_end(folder, uninterrupted)
    assert_one_wandb_run(folder)


def descendants(process: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    files = Path(f"/proc/{process}/task").glob("*/children")
    children = [int(child) for file in files for child in file.read_text().split()]
    return [*children, *(below for child in children for below in descendants(child))]


@contextmanager
def full_disk(folder: Path, pid: int, left: int):
    """A small file system that is full but for some bytes."""
    free = shutil.disk_usage(folder).free
    with (folder / "filler").open("wb") as filler:
        filler.write(b"0" * (free - left))
    yield
    (folder / "filler").unlink()


@contextmanager
def small_files(folder: Path, pid: int, left: int):
    """No file may grow above some bytes."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (left, left))
    yield


@pytest.mark.parametrize("fault", ["small files", "half a checkpoint fits", "nothing fits"])
def test_where_a_checkpoint_cannot_be_written_the_run_stops_and_the_last_one_is_whole(
    waiting, uninterrupted, logs, tmp_path, request, fault
):
    file, command, folder = waiting
    if fault != "small files":
        folder.mkdir()
        size = "-o", "size=32m"
        if subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("a file system of its own needs the right to mount one")
        request.addfinalizer(lambda: subprocess.run(["umount", "-l", folder], check=True))
    running = Command(*command, folder=logs)
    running.wait_until(lambda: steps_in(folder) >= 5)
    file.touch()
    time.sleep(1)
    reached = steps_in(folder)
    assert reached < STEPS - 4
    (checkpoint,) = (folder / "checkpoints").glob("step_*")
    largest = max(path.stat().st_size for path in checkpoint.rglob("*"))
    break_disk = small_files if fault == "small files" else full_disk
    with break_disk(folder, running.process.pid, 0 if fault == "nothing fits" else largest // 2):
        file.unlink()
        result = running.wait()
        assert result.code == 1, result.stderr
        line = result.one_line()
        assert line.startswith("failed: ")
        assert "Traceback" not in result.stdout + result.stderr
        assert "; to resume: python " in line
        if fault != "nothing fits":
            assert "could not be written" in line
            assert f"the last complete one is {checkpoint.name}" in line
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [checkpoint.name]
        load_state(checkpoint)
    rest = run(*command, folder=logs)
    assert rest.code == 0, rest.stderr
    assert f"Resuming from step {int(checkpoint.name[5:])}" in rest.stdout
    assert_same_end(folder, uninterrupted)
    assert_one_wandb_run(folder)


def test_a_run_that_died_before_its_summary_still_writes_it(uninterrupted, long_command, logs, tmp_path):
    command, _ = long_command
    copy = tmp_path / "copy"
    shutil.copytree(uninterrupted, copy)
    (copy / "summary.json").unlink()
    result = run(*command, f"hydra.run.dir={copy}", folder=logs)
    assert result.code == 0, result.stderr
    assert_same_end(copy, uninterrupted)
