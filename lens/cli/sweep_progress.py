"""Shows one progress bar for a whole sweep, whichever launcher runs its jobs."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lens.cli.entry_point import exit_with
from lens.config.checks import check_values
from lens.errors import ConfigError
from lens.progress import progress_bar
from lens.runs.tracker import STEP_AXIS

POLL_SECONDS = 1.0


class SweepProgress(Callback):
    """Watches the run folders of a sweep, and shows the finished steps and the time left."""

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: launchers send callbacks along with each job, but the watching thread stays here."""
        return {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Start watching; the jobs do not know of it. Exit if ``jobs`` is not a valid number."""
        try:
            check_values(OmegaConf.masked_copy(config, "jobs"))
        except ConfigError as error:  # Hydra would only warn
            exit_with(str(error))
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(config, time.time()), daemon=True)
        self._watcher.start()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Update the bar for the last time, and stop watching."""
        self._over.set()
        self._watcher.join()

    def _watch(self, config: DictConfig, started: float) -> None:
        jobs, steps = count_jobs_and_steps(config)
        with progress_bar(steps, desc=f"{jobs} runs") as bar:
            over = False
            while not over:
                over = self._over.wait(POLL_SECONDS)
                bar.update(count_steps(Path(config.hydra.sweep.dir), since=started) - bar.n)


def count_jobs_and_steps(config: DictConfig) -> tuple[int, int | None]:
    """Return how many jobs a sweep has, by its overrides and hydra.sweeper.params, and how many steps all jobs have.

    The number of steps is None if trainer.max_steps is not an integer everywhere.
    """
    parser = OverridesParser.create()
    given = {}
    for key, values in (config.hydra.sweeper.get("params") or {}).items():
        given[key] = parser.parse_override(f"{key}={values}")
    for override in parser.parse_overrides(list(config.hydra.overrides.task)):
        given[override.key_or_group] = override
    values = {key: list(o.sweep_iterator()) if o.is_sweep_override() else [o.value()] for key, o in given.items()}
    jobs = math.prod(map(len, values.values()))
    lengths = values.get("trainer.max_steps", [config.trainer.max_steps])
    if not all(isinstance(steps, int) for steps in lengths):
        return jobs, None  # the jobs will refuse it
    return jobs, jobs * sum(lengths) // len(lengths)


def count_steps(folder: Path, since: float) -> int:
    """Count the steps in all run folders whose config was written at or after a time (seconds since 1970)."""
    total = 0
    for config in folder.glob("*/.hydra/config.yaml"):
        metrics = config.parent.parent / "metrics.jsonl"
        if config.stat().st_mtime >= since and metrics.exists():
            total += read_last_step(metrics)
    return total


def read_last_step(metrics: Path) -> int:
    """Return the step of the last complete line of a metrics.jsonl; 0 if there is none."""
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 65536))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1])[STEP_AXIS] if lines else 0
