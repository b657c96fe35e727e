"""Lets a sweep continue when a job fails, and prints all failures when the sweep ends.

Each failed job leaves a note, a file beside its run folder. So it works with every launcher, and on any machine.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from lens.cli.explaining import BAD_CONFIG, explain
from lens.distributed.processes import rank
from lens.errors import BAD_INPUT, FAILED, ProcessLost

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Says why a job failed.

    Attributes:
        overrides: the job's.
        message: one line.
        code: the exit code that it would have had alone.
        is_elsewhere: whether another process of the job is gone, and this one could not go on.
    """

    overrides: list[str]
    message: str
    code: int
    is_elsewhere: bool = False


class FailedJobs(Callback):
    """A Hydra callback: its job methods run where the jobs run, its multirun methods where the sweep was started."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove the note of this job's last failure."""
        note_path(config).unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write a note if a job of a sweep failed, and hide the failure from Hydra, which would stop at the first.

        The job then returns the `Failure`.
        """
        if config.hydra.mode == RunMode.RUN or job_return.status != JobStatus.FAILED:
            return
        error, overrides = job_return._return_value, list(config.hydra.overrides.task)
        if isinstance(error, BAD_CONFIG):
            failure = Failure(overrides, explain(error, config.hydra.job.config_name, overrides), BAD_INPUT)
        else:
            log.error("The job failed", exc_info=error)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            message = f"{reason} ({config.hydra.runtime.output_dir} holds the log)"
            failure = Failure(overrides, message, FAILED, isinstance(error, ProcessLost))
        if rank() == 0:
            note_path(config).write_text(json.dumps(asdict(failure)) + "\n")
        job_return.status, job_return.return_value = JobStatus.COMPLETED, failure

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the time: younger notes belong to this sweep."""
        self._started = time.time()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print a line for each failed job, and exit if there is one."""
        failures = take_notes(Path(config.hydra.sweep.dir), since=self._started)
        for name, failure in failures.items():
            own = " ".join(override for override in failure.overrides if override not in config.hydra.overrides.task)
            print(f"error: {name}{own and f' ({own})'}: {failure.message}", file=sys.stderr)
        if failures:
            sys.exit(min(failure.code for failure in failures.values()))


def note_path(config: DictConfig) -> Path:
    """Return the path of a job's note: its run folder's name with the ending .failed."""
    folder = Path(config.hydra.runtime.output_dir)
    return folder.with_name(f"{folder.name}.failed")


def take_notes(sweep: Path, since: float) -> dict[str, Failure]:
    """Read and remove the notes that a sweep's jobs left since a time (seconds since 1970); by the job's name."""
    found = {}
    for note in sorted(sweep.glob("*.failed")):
        if note.stat().st_mtime >= since:
            found[note.stem] = Failure(**json.loads(note.read_text()))
            note.unlink()
    return found
