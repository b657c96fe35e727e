"""Measures where the time of a run goes, with torch's profiler."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, supported_activities

log = logging.getLogger(__name__)

ROWS = 25  # operations that the log lists


@contextmanager
def profile_run(folder: Path, *, enabled: bool) -> Iterator[None]:
    """Profile what runs inside. Log the costliest operations, and write all of them to ``folder/profile.json``."""
    if not enabled:
        yield
        return
    activities = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & supported_activities()
    with profile(activities=activities) as profiler:
        yield
    by = "self_cuda_time_total" if ProfilerActivity.CUDA in activities else "self_cpu_time_total"
    log.info("The costliest operations:\n%s", profiler.key_averages().table(sort_by=by, row_limit=ROWS))
    profiler.export_chrome_trace(str(folder / "profile.json"))
    log.info("All operations: %s, for chrome://tracing", folder / "profile.json")
