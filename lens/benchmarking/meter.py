"""Measures the time and the memory of the phases of a step."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

KIB_PER_GIB, GIB = 2**20, 2**30
Row = dict[str, Any]


class Meter:
    """Measures the seconds and the memory of the phases of a step.

    Memory is that of torch's tensors on the GPU, and where there is none, what is resident of this process.

    Attributes:
        seconds: how long each phase took. On a GPU a phase waits for the work that it started.
        above: for each phase, its highest memory minus that at its start, in GiB.
        peak: the highest memory in any phase, in GiB.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.above: dict[str, float] = {}
        self.peak = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block inside as a phase of this name."""
        release_memory()
        before = start_peak()
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = time.perf_counter() - started
        highest = read_peak()
        self.above[name], self.peak = highest - before, max(self.peak, highest)

    def row(self) -> Row:
        """Return <phase>_s and <phase>_gib for each phase, and peak_gib."""
        seconds = {f"{name}_s": value for name, value in self.seconds.items()}
        return seconds | {f"{name}_gib": value for name, value in self.above.items()} | {"peak_gib": self.peak}


class TensorMemory:
    """Measures the most memory that torch's tensors take at once inside a with block, above that at its start.

    A GPU's allocator keeps it. On a CPU it is the sum of what torch's profiler sees its allocator give and take back;
    tensors from before the block count as if they stayed.

    Attributes:
        above: the most at once minus that at the start, in GiB.
    """

    def __enter__(self) -> TensorMemory:
        release_memory()
        if torch.cuda.is_available():
            self._before = start_peak()
        else:
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if torch.cuda.is_available():
            self.above = read_peak() - self._before
            return
        self._profile.__exit__(*error)
        events = self._profile.profiler.kineto_results.events()
        changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        self.above = max(accumulate((size for _, size in changes), initial=0)) / GIB


class PrivateMemory:
    """Measures the highest private memory of this process inside a with block, above that at its start.

    Private is what no file backs. Linux keeps no highest value of it, so a thread looks every millisecond.

    Attributes:
        above: the highest value minus that at the start, in GiB; nan where /proc is missing.
        looks: how often the thread has looked.
    """

    EVERY_S = 0.001

    def __enter__(self) -> PrivateMemory:
        release_memory()
        self._before = self._highest = read_resident_memory("RssAnon")
        self._ended, self.looks = threading.Event(), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.above = self._highest - self._before

    def _watch(self) -> None:
        while not self._ended.wait(self.EVERY_S):
            self._highest = max(self._highest, read_resident_memory("RssAnon"))
            self.looks += 1


def start_peak() -> float:
    """Forget the highest memory so far, and return what is taken now, in GiB; see `Meter`."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / GIB
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the highest resident size
    return read_resident_memory("VmRSS")


def read_peak() -> float:
    """Return the highest memory since `start_peak`, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return read_resident_memory("VmHWM")


def read_resident_memory(field: str) -> float:
    """Return the memory of this process in GiB; nan where /proc is missing, as on macOS.

    Args:
        field: VmRSS for the memory resident now, VmHWM for its highest value, RssAnon for what no file backs.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / KIB_PER_GIB
    return float("nan")


def release_memory() -> None:
    """Give freed memory back to the system; otherwise the next phase could reuse it and seem to need none."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where no GPU is used
    with suppress(OSError, AttributeError):  # the system has no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
