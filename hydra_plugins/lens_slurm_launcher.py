"""A Hydra launcher that runs a sweep's jobs on a SLURM cluster, by way of submitit.

A job that is stopped before its end writes a checkpoint and ends with the code INTERRUPTED; its batch script then has
SLURM queue it again. Jobs do not need the process that started the sweep: started again, the sweep waits for them.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from hydra_plugins.lens_launcher import JOB_DIR, JobLauncher, stop_noted
from lens.distributed.processes import exit_at_once
from lens.errors import INTERRUPTED, ConfigError, RunFailed, StopRequested

log = logging.getLogger(__name__)

POLL_S = 2.0
LOST_NODE_WITHIN_S = 60.0  # after the node's time to answer is over
RESULT_WITHIN_S = 15.0  # in which a file that a node wrote can be seen here
# Options that every launcher of submitit takes; the others are SLURM's.
SHARED = {"name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"}
SHARED |= {"stderr_to_stdout"}
# What the batch script does after its processes. SLURM itself queues a job again only if it has to kill it. Code 143: a
# process that was still loading was ended by SIGTERM. A job that was cancelled is no longer running. One task of an
# array has the number of the whole array, so tasks go by both numbers.
QUEUE_AGAIN = f"""\
code=$?
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
job=${{job:-$SLURM_JOB_ID}}
case $code in {INTERRUPTED}|143)
  [ "$(squeue --noheader --jobs=$job --format=%T)" != RUNNING ] || scontrol requeue $job;;
esac
exit $code"""


class SlurmLauncher(JobLauncher):
    """Queues jobs, and waits for them. Ctrl-C and SIGTERM end the waiting; the jobs stay in the queue.

    Args:
        options: those of configs/hydra/launcher/submitit_slurm.yaml.
    """

    def __init__(self, **options: Any):
        self.options = options

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a job for each list of overrides, and return their results in the same order.

        Raises:
            ConfigError: the cluster does not have what is asked for.
            StopRequested: SIGINT or SIGTERM arrived.
        """
        from lens.cli.slurm import fit_to_cluster, list_queue

        configs = self.job_configs(job_overrides, initial_job_idx)
        options = fit_to_cluster(self.options)
        returns = self.refuse(configs, options["nodes"] * options["tasks_per_node"])
        with stop_noted(list) as stopped:
            waiting = self.find_or_queue({n: c for n, c in enumerate(configs) if n not in returns}, options)
            while waiting and not stopped:
                time.sleep(POLL_S)
                queue = list_queue()
                over = [] if queue is None else [number for number, job in waiting.items() if job not in queue]
                for number in over:
                    returns[number] = self.end(waiting.pop(number), configs[number])
        if waiting:
            jobs, them = ", ".join(waiting.values()), "them" if len(waiting) > 1 else "it"
            again = f"the same command waits for {them} again, and scancel ends {them}"
            raise StopRequested(f"SLURM goes on with {jobs}; {again}")
        return [returns[number] for number in sorted(returns)]

    def refuse(self, configs: list[DictConfig], processes: int) -> dict[int, JobReturn]:
        """Return failed results of the jobs that so many processes cannot run, so that they are not queued at all."""
        refused = {}
        for number, config in enumerate(configs):
            try:
                if "trainer" in config:
                    from lens.config.checks import check_training

                    check_training(config, processes)
            except ConfigError as error:
                refused[number] = self.failed(config, error)
        return refused

    def find_or_queue(self, configs: dict[int, DictConfig], options: dict[str, Any]) -> dict[int, str]:
        """Queue the jobs that are not in the queue yet, and return the SLURM job of each."""
        from lens.cli.slurm import list_queue

        file = Path(self.config.hydra.sweep.dir) / ".submitit" / "queued.json"
        known, queue = json.loads(file.read_text()) if file.exists() else {}, list_queue() or set()
        names = {number: str(config.hydra.sweep.subdir) for number, config in configs.items()}
        found = {number: known[name] for number, name in names.items() if known.get(name) in queue}
        if found:
            log.info("SLURM still has %s", ", ".join(found.values()))
        new = {number: config for number, config in configs.items() if number not in found}
        if new:
            queued = self.queue(list(new.values()), options)
            log.info("Queued %s; their output: %s", ", ".join(queued), self.options["submitit_folder"])
            found |= dict(zip(new, queued, strict=True))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(known | {names[number]: job for number, job in found.items()}) + "\n")
        return found

    def queue(self, configs: list[DictConfig], options: dict[str, Any]) -> list[str]:
        """Queue a job for each config, and return their numbers.

        Raises:
            ConfigError: sbatch refuses them.
        """
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        own = {"submitit_folder", "max_num_timeout"}
        wanted = {k if k in SHARED else f"slurm_{k}": v for k, v in options.items() if k not in own}
        executor = submitit.AutoExecutor(folder=self.options["submitit_folder"], cluster="slurm")
        job = Job(self.hydra_context, self.task_function, Singleton.get_state(), options["max_num_timeout"])
        try:
            executor.update_parameters(**wanted, slurm_teardown=[QUEUE_AGAIN])
            with redirect_stderr(io.StringIO()):  # the error has what sbatch prints
                return [queued.job_id for queued in executor.map_array(job, configs)]
        except (FailedJobError, FailedSubmissionError) as error:
            says = f"sbatch says: {' '.join(str(error).split())}"
            raise ConfigError("hydra/launcher", "submitit_slurm", says) from error

    def end(self, job: str, config: DictConfig) -> JobReturn:
        """Return the result of a job that has left the queue; a failed one where it left none."""
        import submitit
        from submitit.core.utils import pickle_load

        from lens.cli.slurm import state_of
        from lens.cli.sweep_failures import note_path

        paths = submitit.SlurmJob(self.options["submitit_folder"], job).paths
        deadline = time.monotonic() + RESULT_WITHIN_S
        while not paths.result_pickle.exists():
            if time.monotonic() > deadline:
                cause = f"SLURM's job {job} ended early: {state_of(job)} ({paths.stderr} has its output)"
                return self.failed(config, RuntimeError(cause))
            time.sleep(0.5)
        outcome, result = pickle_load(paths.result_pickle)
        if outcome == "success":
            return result
        if note_path(config).exists():  # the job has said why
            return JobReturn(overrides=config.hydra.overrides.task, cfg=config, status=JobStatus.COMPLETED)
        kind, _, message = result.strip().splitlines()[-1].partition(": ")
        error = RunFailed(message) if kind.endswith("RunFailed") else RuntimeError(f"{kind}: {message}")
        return self.failed(config, error)


class Job:
    """What a process of a job runs; called with the job's config.

    Args:
        hydra_context, task_function: what Hydra gave to the launcher.
        singletons: Hydra's global state.
        max_num_timeout: how often the job may be queued again because of its time limit.
    """

    def __init__(
        self, hydra_context: HydraContext, task_function: Callable, singletons: dict[Any, Any], max_num_timeout: int
    ):
        self.hydra_context, self.task_function = hydra_context, task_function
        self.singletons, self.max_num_timeout = singletons, max_num_timeout

    def __call__(self, config: DictConfig) -> JobReturn:
        """Run the job to its end, or until SLURM asks it to stop.

        SIGTERM comes before a job with lower priority makes room, and SIGUSR2 before the time limit. The run takes both
        as SIGTERM: it writes a checkpoint.

        Raises:
            RunFailed: the job failed, so that SLURM records it as failed; or it met its time limit too often.
        """
        from submitit import JobEnvironment

        from lens.cli.sweep_failures import Failure

        job, near_limit = JobEnvironment(), threading.Event()

        def stop(number: int, frame: Any) -> None:
            raise KeyboardInterrupt

        def stop_at_limit(number: int, frame: Any) -> None:
            near_limit.set()
            signal.raise_signal(signal.SIGTERM)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGUSR2, stop_at_limit)
        try:
            Singleton.set_state(self.singletons)
            setup_globals()
            with open_dict(config):
                config.hydra.job.id = job.job_id
            HydraConfig.instance().set_config(config)
            returned = run_job(
                hydra_context=self.hydra_context, task_function=self.task_function, config=config, **JOB_DIR
            )
            if isinstance(returned._return_value, Failure) and returned._return_value.is_elsewhere:
                wait_for_slurm(returned._return_value.message)
        except KeyboardInterrupt as stopped:
            ignore_signals()
            print(f"stopped: {stopped.__cause__ or 'while loading'}", file=sys.stderr)
            limits = job.paths.folder / "limits" if near_limit.is_set() else None
            self.leave(is_first=job.global_rank == 0, limits=limits)
        ignore_signals()  # all is done, and need not be done again
        if isinstance(returned._return_value, Failure):
            raise RunFailed(returned._return_value.message)
        return returned

    def leave(self, *, is_first: bool, limits: Path | None) -> None:
        """Exit; the code of the first process has the job queued again.

        Args:
            is_first: whether this is the first process of the job.
            limits: a file with a byte for each time that the job met its time limit; None: it is not why the job ends.

        Raises:
            RunFailed: the job met its time limit too often.
        """
        if not is_first:
            exit_at_once()
        if limits is not None:
            with limits.open("ab") as file:
                file.write(b".")
            if os.path.getsize(limits) > self.max_num_timeout:
                again = f"hydra.launcher.max_num_timeout={self.max_num_timeout}; the same command goes on"
                raise RunFailed(f"stopped by its time limit once more than {again}")
        exit_at_once(INTERRUPTED)


def wait_for_slurm(message: str) -> None:
    """Wait until SLURM would have noticed that a node is lost: it then ends this process, and queues the job again.

    Args:
        message: why this process cannot go on.
    """
    from lens.cli.slurm import node_timeout

    seconds = node_timeout() + LOST_NODE_WITHIN_S
    print(f"{message}; SLURM has {seconds:.0f} s to queue the job again, as it does if a node is lost", file=sys.stderr)
    time.sleep(seconds)


def ignore_signals() -> None:
    """Let nothing but SIGKILL disturb the end of this process."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
