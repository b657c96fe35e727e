"""Sweeps on a real cluster: what SLURM, its users and its machines do to jobs, and how they end nevertheless."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing, private_cluster
from tests.support.command_line import (
    ROOT,
    Command,
    assert_one_wandb_run,
    assert_same_end,
    environment,
    run,
    steps_in,
    tables_of,
    training,
    wait_until,
)

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(missing()), reason=f"without {', '.join(missing())}: Debian's slurm-wlm and munge"),
]
CALLS = 3  # of the engine, before a job waits
STEPS = 12


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with private_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def single(model: Path, outputs: Path, *overrides: object) -> list[object]:
    """The command of a sweep by SLURM of one job."""
    keys = {"max_steps": STEPS, "checkpoint_every": 50}
    script, *rest = training(model, outputs, "objective=lens", "seed=0", "evaluation.every=4", **keys)
    return [script, "-m", *rest, *overrides]


def by_slurm(file: Path) -> list[str]:
    """The overrides that have the jobs of a sweep run by SLURM, and wait as long as a file exists."""
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=60"]
    waiting = "sampler._target_=tests.support.faults.WaitingSampler", f"+sampler.while_exists={file}"
    return [*launcher, *waiting, f"+sampler.after_calls={CALLS}"]


class Sweep:
    """A sweep that a cluster runs; its jobs wait when the engine has been called a few times.

    Attributes:
        running: the command.
        folder: of the sweep.
    """

    def __init__(self, cluster: Cluster, command: list[object], outputs: Path, logs: Path):
        self.cluster, self.command, self.logs = cluster, command, logs
        self.env, self.folder = environment(PYTHONPATH=str(ROOT), **cluster.env), outputs / "sweeps" / "tiny"
        self.seen: dict[str, int] = {}
        self.start()

    def start(self) -> None:
        """Type the command."""
        self.running = Command(*self.command, folder=self.logs, real=True, env=self.env)

    def jobs(self) -> dict[str, str]:
        """SLURM's number of each job, by the name of its run folder."""
        file = self.folder / ".submitit" / "queued.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def wait_until_found(self) -> None:
        """Wait until the command has found its job in the queue."""
        self.running.wait_until(lambda: "SLURM still has" in self.running.stdout.read_text())

    def wait_for_steps(self, jobs: int = 1) -> None:
        """Wait until so many jobs have made steps since the last call."""
        now = lambda: {name: steps_in(self.folder / name) for name in self.jobs()}  # noqa: E731
        self.running.wait_until(lambda: sum(step > self.seen.get(name, 0) for name, step in now().items()) == jobs)
        self.seen = now()

    def wait_until_queued_again(self, times: int) -> None:
        """Wait until all jobs have been queued again so many times."""
        self.wait_for(lambda: all(self.ask(job)["Restarts"] == str(times) for job in self.jobs().values()))

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait for something that happens while the command runs; ask SLURM no more than twice a second."""
        self.running.wait_until(lambda: happened() or time.sleep(0.5))

    def ask(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        shown = self.cluster.ask("scontrol", "show", "job", job)
        return dict(field.split("=", 1) for field in shown.split() if "=" in field)

    def come_near_limit(self, job: str) -> None:
        """Have the time limit of a job come within signal_delay_s=120."""
        minutes = int(self.ask(job)["RunTime"].split(":")[-2]) + 2
        assert self.cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}") is not None

    def only(self) -> tuple[Path, str]:
        """The run folder and the number of the only job."""
        ((name, job),) = self.jobs().items()
        return self.folder / name, job

    def output(self, job: str) -> str:
        """What a job has printed, all its processes together."""
        return "".join(file.read_text() for file in sorted((self.folder / ".submitit" / job).glob("*_log.*")))


@pytest.fixture(scope="module")
def whole(pupil, logs, tmp_path_factory) -> Path:
    """The outputs of the sweep of both objectives that nobody disturbed."""
    outputs = tmp_path_factory.mktemp("whole")
    result = run(*single(pupil, outputs, "objective=grpo,lens", "hydra/launcher=basic"), folder=logs)
    assert result.code == 0, result.stderr
    return outputs


def test_jobs_are_preempted_and_meet_their_time_limit_and_end_with_the_tables_of_undisturbed_ones(
    cluster, pupil, whole, logs, tmp_path
):
    file = tmp_path / "wait"
    file.touch()
    command = single(pupil, tmp_path, *by_slurm(file), "objective=grpo,lens", "hydra.launcher.max_num_timeout=1")
    sweep = Sweep(cluster, command, tmp_path, logs)
    sweep.wait_for_steps(jobs=2)
    all_cores = ["--nodes=2", "--ntasks-per-node=8", "--output=/dev/null", "--wrap=sleep 1"]
    assert cluster.ask("sbatch", "--partition=urgent", *all_cores)
    sweep.wait_until_queued_again(1)
    sweep.wait_for_steps(jobs=2)
    for job in sweep.jobs().values():
        sweep.come_near_limit(job)
    sweep.wait_until_queued_again(2)
    for job in sweep.jobs().values():
        assert cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60") is not None
    sweep.wait_for_steps(jobs=2)
    file.unlink()
    result = sweep.running.wait()
    assert result.code == 0, result.stderr
    assert "validated against" not in result.stderr and "sacct" not in result.stderr

    for name, job in sweep.jobs().items():
        asked = sweep.ask(job)
        assert (asked["JobState"], asked["Restarts"]) == ("COMPLETED", "2")
        assert (sweep.folder / ".submitit" / job / "limits").read_bytes() == b"."
        log = (sweep.folder / name / "train.log").read_text()
        assert log.count("Resuming from step") == 2
        (undisturbed,) = whole.glob(f"sweeps/tiny/{name.rsplit('-', 1)[0]}-*")
        assert_same_end(sweep.folder / name, undisturbed)
        assert_one_wandb_run(sweep.folder / name)
    assert tables_of(tmp_path, logs) == tables_of(whole, logs)


def test_two_processes_are_asked_to_stop_and_one_job_is_queued_again(cluster, pupil, logs, tmp_path):
    file = tmp_path / "wait"
    file.touch()
    sweep = Sweep(cluster, single(pupil, tmp_path, *by_slurm(file), "hydra.launcher.tasks_per_node=2"), tmp_path, logs)
    sweep.wait_for_steps()
    folder, job = sweep.only()
    assert cluster.ask("scancel", "--signal=TERM", job) is not None
    sweep.wait_until_queued_again(1)
    file.unlink()
    result = sweep.running.wait()
    assert result.code == 0, result.stderr
    assert_trained_by_two(folder)
    output = sweep.output(job)
    assert output.count("stopped: at step ") == 2
    assert output.count("Job completed successfully") == 2  # both processes, in the end
    assert (folder / "train.log").read_text().count("Resuming from step") == 1


def assert_trained_by_two(folder: Path) -> None:
    """A finished run whose optimizer was kept by two processes."""
    assert (folder / "summary.json").exists()
    assert len(list((folder / "checkpoints").glob(f"step_{STEPS:06d}/optimizer/*.safetensors"))) == 2


def test_a_job_of_two_nodes_goes_on_after_one_of_them_has_gone_down(cluster, pupil, logs, tmp_path):
    file = tmp_path / "wait"
    file.touch()
    keys = "hydra.launcher.nodes=2", "trainer.checkpoints.checkpoint_every=2"
    sweep = Sweep(cluster, single(pupil, tmp_path, *by_slurm(file), *keys), tmp_path, logs)
    sweep.wait_for_steps()
    folder, job = sweep.only()
    assert sweep.ask(job)["NumNodes"] == "2"
    cluster.lose_node(cluster.nodes[1])
    sweep.wait_for(lambda: "down" in (cluster.state_of_node(cluster.nodes[1]) or ""))
    file.unlink()
    cluster.start_node(cluster.nodes[1])
    result = sweep.running.wait()
    assert result.code == 0, result.stderr
    assert sweep.only() == (folder, job)
    assert sweep.ask(job)["Restarts"] == "1"
    assert_trained_by_two(folder)


def test_a_sweep_that_is_stopped_or_killed_finds_its_job_again_and_one_that_is_cancelled_goes_on(
    cluster, pupil, whole, logs, tmp_path
):
    file = tmp_path / "wait"
    file.touch()
    sweep = Sweep(cluster, single(pupil, tmp_path, *by_slurm(file)), tmp_path, logs)
    sweep.running.wait_until(sweep.jobs)
    folder, job = sweep.only()
    os.kill(sweep.running.process.pid, signal.SIGTERM)
    result = sweep.running.wait()
    assert result.code == 130
    goes_on = f"SLURM goes on with {job}; the same command waits for it again, and scancel ends it"
    assert result.one_line() == f"stopped: {goes_on}"

    sweep.start()
    sweep.wait_until_found()
    sweep.running.signal(signal.SIGKILL)
    sweep.running.wait()
    sweep.start()
    sweep.wait_until_found()
    sweep.wait_for_steps()
    assert sweep.only() == (folder, job)
    cluster.ask("scancel", job)
    result = sweep.running.wait()
    assert result.code == 1
    (error,) = result.errors()
    assert f"SLURM's job {job} ended early: CANCELLED" in error
    assert sweep.ask(job)["JobState"] == "CANCELLED"
    stopped_at = steps_in(folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step_{stopped_at:06d}"]

    file.unlink()
    sweep.start()
    result = sweep.running.wait()
    assert result.code == 0, result.stderr
    assert sweep.only()[1] != job
    (undisturbed,) = whole.glob("sweeps/tiny/lens-*")
    assert_same_end(folder, undisturbed)


def test_a_job_that_meets_its_limit_too_often_fails_and_the_same_command_goes_on(cluster, pupil, logs, tmp_path):
    file = tmp_path / "wait"
    file.touch()
    sweep = Sweep(cluster, single(pupil, tmp_path, *by_slurm(file), "hydra.launcher.max_num_timeout=0"), tmp_path, logs)
    sweep.wait_for_steps()
    folder, job = sweep.only()
    sweep.come_near_limit(job)
    result = sweep.running.wait()
    assert result.code == 1, result.stderr
    (error,) = result.errors()
    assert "stopped by its time limit once more than hydra.launcher.max_num_timeout=0" in error
    assert sweep.ask(job)["JobState"] == "FAILED"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step_{steps_in(folder):06d}"]


def test_a_job_that_fails_is_failed_to_slurm_and_named(cluster, pupil, logs, tmp_path):
    keys = "optimizer.learning_rate=1e300,1e-4", "hydra.launcher.tasks_per_node=2"
    sweep = Sweep(cluster, single(pupil, tmp_path, *by_slurm(tmp_path / "never"), *keys), tmp_path, logs)
    result = sweep.running.wait()
    assert result.code == 1, result.stderr
    (error,) = result.errors()
    assert "(optimizer.learning_rate=1e+300): " in error
    states = {sweep.ask(job)["JobState"]: sweep.folder / name for name, job in sweep.jobs().items()}
    assert states.keys() == {"COMPLETED", "FAILED"}
    assert (states["COMPLETED"] / "summary.json").exists()
    assert not list(sweep.folder.glob("*.failed"))
    if cluster.has_accounting:
        failed = wait_until(lambda: "FAILED" in (cluster.ask("sacct", "--noheader", "--format=State") or ""))
        assert failed


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["partition=gpu"], "hydra.launcher.partition='gpu': must be one of cpu, urgent"),
        (["gpus_per_node=1"], "hydra.launcher.gpus_per_node=1: must be at most 0, the GPUs of a node of the default"),
        (["tasks_per_node=9"], "hydra.launcher.tasks_per_node=9: times cpus_per_task=1 must be at most 8, the cores"),
        (["timeout_min=3"], "hydra.launcher.timeout_min=3: must be more than 3: signal_delay_s, and 60 s by which"),
        (["nodes=3", "partition=cpu"], "hydra.launcher.nodes=3: must be at most 2, the nodes of partition cpu"),
        (["tasks_per_node=3"], "trainer.num_prompts_per_step=4: must be a multiple of 3, the number of processes"),
        (["additional_parameters.colour=red"], "hydra/launcher='submitit_slurm': sbatch says: "),
    ],
)
def test_what_the_cluster_cannot_do_is_refused_in_one_line(cluster, pupil, logs, tmp_path, overrides, line):
    keys = [f"{'+' if 'colour' in override else ''}hydra.launcher.{override}" for override in overrides]
    env = environment(PYTHONPATH=str(ROOT), **cluster.env)
    result = run(*single(pupil, tmp_path, *by_slurm(tmp_path / "never"), *keys), folder=logs, env=env)
    assert result.code == 2, result.stderr
    assert line in result.one_line()
    assert cluster.ask("squeue", "--noheader") == ""


def test_without_slurm_the_launcher_says_so(pupil, logs, tmp_path):
    env = environment(PYTHONPATH=str(ROOT), PATH="/nowhere")
    result = run(*single(pupil, tmp_path, *by_slurm(tmp_path / "never")), folder=logs, env=env)
    assert result.code == 2, result.stderr
    needs = "needs a machine with SLURM's commands; there is no sinfo here"
    assert result.one_line() == f"error: hydra/launcher='submitit_slurm': {needs}"
