"""Hydra's launcher of a sweep's jobs on this machine: each in a process of its own, some at a time.

A process takes everything with it when it ends: memory that an engine keeps, settings of a library, and, where the
kernel kills it for want of memory, no other job.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
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

JOB_DIR = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
INTERRUPTED = 130
# Imported once, by a process that every job is a fork of.
PRELOADED = ["lens.runs"]


class ProcessLauncher(Launcher):
    """Runs jobs as forks of one clean process.

    Ctrl-C reaches the jobs as it reaches this process, SIGTERM is handed on; no further job starts, and those that run
    are waited for, so that each can write its checkpoint.

    Args:
        n_jobs: how many run at the same time; -1: as many as there are cores.
    """

    def __init__(self, n_jobs: int):
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: Callable, config: DictConfig) -> None:
        """Take what Hydra composed."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a job for each list of overrides; what they return, in that order.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM has come; all jobs have ended.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(PRELOADED)
        limit = self.n_jobs if self.n_jobs > 0 else len(os.sched_getaffinity(0))
        waiting = [self.job_config(initial_job_idx + i, overrides) for i, overrides in enumerate(job_overrides)]
        waiting = list(enumerate(waiting))[::-1]
        running: dict[Connection, tuple[int, DictConfig, Any]] = {}
        returns: dict[int, JobReturn] = {}
        with stop_noted(lambda: [process for _, _, process in running.values()]) as stopped:
            while running or (waiting and not stopped):
                while waiting and len(running) < limit and not stopped:
                    number, config = waiting.pop()
                    ours, theirs = processes.Pipe(duplex=False)
                    what = self.hydra_context, self.task_function, config, Singleton.get_state()
                    process = processes.Process(target=run_pickled, args=(cloudpickle.dumps(what), theirs))
                    process.start()
                    theirs.close()
                    running[ours] = number, config, process
                for ended in wait(list(running)):
                    number, config, process = running[ended]
                    returned = received(ended)
                    process.join()
                    del running[ended]
                    if returned is None and process.exitcode == INTERRUPTED:
                        stopped.append(signal.SIGINT)
                    elif not stopped:
                        returns[number] = returned or self.killed(config, process.exitcode)
        if stopped:
            raise KeyboardInterrupt
        return [returns[number] for number in sorted(returns)]

    def job_config(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """The config of a job of the sweep."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = f"{config.hydra.job.name}_{number}"
            config.hydra.job.num = number
            config.hydra.runtime.output_dir = str(Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute())
        return config

    def killed(self, config: DictConfig, exitcode: int) -> JobReturn:
        """What a job returns that ended without a word."""
        cause = signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
        hint = "; too little memory?" if exitcode == -signal.SIGKILL else ""
        result = JobReturn(overrides=config.hydra.overrides.task, cfg=config, status=JobStatus.FAILED)
        result.return_value = RuntimeError(f"its process was ended by {cause}{hint}")
        callbacks = self.hydra_context.callbacks
        callbacks.on_job_end(config=config, config_name=config.hydra.job.config_name, job_return=result)
        return result


@contextmanager
def stop_noted(processes: Callable[[], list[multiprocessing.Process]]) -> Iterator[list[int]]:
    """Meanwhile SIGINT and SIGTERM add to this list; SIGTERM, which comes to this process alone, is handed on."""
    stopped: list[int] = []

    def note(number: int, frame: Any) -> None:
        stopped.append(number)
        if number == signal.SIGTERM:
            for process in processes():
                process.terminate()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def received(connection: Connection) -> JobReturn | None:
    """What a job has sent, None where it ended without."""
    try:
        return cloudpickle.loads(connection.recv_bytes())
    except EOFError:
        return None
    finally:
        connection.close()


def run_pickled(what: bytes, result: Connection) -> None:
    """Run a job in this process, which is its own, and send what it returns."""
    threading.Thread(target=end_with_sweep, daemon=True).start()
    try:
        setup_globals()
        hydra_context, task_function, config, singletons = cloudpickle.loads(what)
        Singleton.set_state(singletons)
        HydraConfig.instance().set_config(config)
        returned = run_job(hydra_context=hydra_context, config=config, task_function=task_function, **JOB_DIR)
        result.send_bytes(cloudpickle.dumps(returned))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def end_with_sweep() -> None:
    """Wait for the sweep's process to end, and with it this one, however the sweep has ended."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
