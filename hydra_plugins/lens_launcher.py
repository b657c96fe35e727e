"""A Hydra launcher that runs a sweep's jobs on this machine, several at a time, each in a process of its own.

When a process ends, the memory of its engine and the settings of its libraries go with it. If the kernel kills it for
lack of memory, the other jobs go on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from lens.errors import INTERRUPTED

JOB_DIR = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
GRACE_S = 60.0  # seconds in which a job's other processes have to end after its first
# Imported once, by the process that every job is forked from.
PRELOADED = ["lens.commands.train"]


class JobLauncher(Launcher):
    """What launchers share that compose a job's config where the sweep was started."""

    def setup(self, *, hydra_context: HydraContext, task_function: Callable, config: DictConfig) -> None:
        """Store what Hydra composed."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def job_configs(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[DictConfig]:
        """Prepare the sweep's folder and the console's log, and compose the config of each job."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        return [self.job_config(first + i, overrides) for i, overrides in enumerate(job_overrides)]

    def job_config(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """Compose the config of one job of the sweep."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = f"{config.hydra.job.name}_{number}"
            config.hydra.job.num = number
            config.hydra.runtime.output_dir = str(Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute())
        return config

    def failed(self, config: DictConfig, error: Exception) -> JobReturn:
        """Return the result of a job that could not return one itself, and tell the callbacks."""
        result = JobReturn(overrides=config.hydra.overrides.task, cfg=config, status=JobStatus.FAILED)
        result.return_value = error
        callbacks = self.hydra_context.callbacks
        callbacks.on_job_end(config=config, config_name=config.hydra.job.config_name, job_return=result)
        return result


class ProcessLauncher(JobLauncher):
    """Runs jobs as forks of one clean process.

    Ctrl-C reaches this process and the jobs alike; SIGTERM is passed on to the jobs. After either, no further job
    starts, and the launcher waits for the running jobs, so that each can write its checkpoint.

    Args:
        n_jobs: how many jobs run at the same time; -1 means one per core.
        processes_per_job: how many processes train one model together, as under torchrun.
    """

    def __init__(self, n_jobs: int, processes_per_job: int):
        self.n_jobs, self.processes_per_job = n_jobs, processes_per_job

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a job for each list of overrides, and return their results in the same order.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM arrived; all jobs have ended.
        """
        waiting = list(enumerate(self.job_configs(job_overrides, initial_job_idx)))[::-1]
        limit = self.n_jobs if self.n_jobs > 0 else len(os.sched_getaffinity(0))
        running: dict[Connection, tuple[int, Job]] = {}
        returns: dict[int, JobReturn] = {}
        with stop_noted(lambda: [job for _, job in running.values()]) as stopped:
            while running or (waiting and not stopped):
                while waiting and len(running) < limit and not stopped:
                    number, config = waiting.pop()
                    what = self.hydra_context, self.task_function, config, Singleton.get_state()
                    job = Job(config, cloudpickle.dumps(what), self.processes_per_job)
                    running[job.result] = number, job
                for ended in wait(list(running)):
                    number, job = running.pop(ended)
                    returned, exitcode = job.end()
                    if returned is None and exitcode == INTERRUPTED:
                        stopped.append(signal.SIGINT)
                    elif not stopped:
                        returns[number] = returned or self.killed(job.config, exitcode)
        if stopped:
            raise KeyboardInterrupt
        return [returns[number] for number in sorted(returns)]

    def killed(self, config: DictConfig, exitcode: int) -> JobReturn:
        """Return the failed result of a job whose process ended without returning one."""
        cause = signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
        hint = "; too little memory?" if exitcode == -signal.SIGKILL else ""
        return self.failed(config, RuntimeError(f"its process ended with {cause}{hint}"))


class Job:
    """The processes of one job; the first of them sends the job's result.

    Attributes:
        config: the config of the job.
        result: a connection that is ready to read once the first process has sent its result, or has ended without one.
    """

    def __init__(self, config: DictConfig, what: bytes, size: int):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.config = config
        self.result, theirs = context.Pipe(duplex=False)
        places = [{}] if size == 1 else places_of(size)
        self.processes = [context.Process(target=run_pickled, args=(what, theirs, place)) for place in places]
        for process in self.processes:
            process.start()
        theirs.close()

    def terminate(self) -> None:
        """Send every process SIGTERM."""
        for process in self.processes:
            process.terminate()

    def end(self) -> tuple[JobReturn | None, int]:
        """Wait for the job to end; return its result (None if there is none) and its first process's exit code."""
        try:
            returned = cloudpickle.loads(self.result.recv_bytes())
        except EOFError:
            returned = None
        self.result.close()
        for process in self.processes:
            process.join(None if process is self.processes[0] else GRACE_S)
            process.kill()
        return returned, self.processes[0].exitcode


def places_of(size: int) -> list[dict[str, str]]:
    """Return the environment variables that torch.distributed reads, for each of ``size`` processes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    places = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(size)]
    return [{name: str(value) for name, value in place.items()} for place in places]


@contextmanager
def stop_noted(jobs: Callable[[], list[Job]]) -> Iterator[list[int]]:
    """Yield a list to which SIGINT and SIGTERM add their numbers, as long as the block runs.

    SIGTERM arrives at this process only, so it is passed on to the running jobs.
    """
    stopped: list[int] = []

    def note(number: int, frame: Any) -> None:
        stopped.append(number)
        if number == signal.SIGTERM:
            for job in jobs():
                job.terminate()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_pickled(what: bytes, result: Connection, place: dict[str, str]) -> None:
    """Run a job in this process, and send its result.

    Args:
        what: the pickled job.
        result: the connection to send the result to.
        place: environment variables that say which of the job's processes this is; only the first sends the result.
    """
    os.environ.update(place)
    is_first = place.get("RANK", "0") == "0"
    if not is_first:
        result.close()
    threading.Thread(target=end_with_sweep, daemon=True).start()
    try:
        setup_globals()
        hydra_context, task_function, config, singletons = cloudpickle.loads(what)
        Singleton.set_state(singletons)
        HydraConfig.instance().set_config(config)
        returned = run_job(hydra_context=hydra_context, config=config, task_function=task_function, **JOB_DIR)
        if is_first:
            result.send_bytes(cloudpickle.dumps(returned))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def end_with_sweep() -> None:
    """Wait until the sweep's process ends, then kill this process; it works however the sweep ended."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
