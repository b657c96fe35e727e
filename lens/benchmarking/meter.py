"""Measures the time and the memory of the phases of a step."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

KIB_PER_GIB = 2**20
Row = dict[str, Any]


class Meter:
    """Measures the seconds and the memory of the phases of a step.

    Attributes:
        seconds: how long each phase took.
        above: for each phase, its highest resident memory minus that at its start, in GiB.
        peak: the highest resident memory of this process in any phase, in GiB.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.above: dict[str, float] = {}
        self.peak = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block inside as a phase of this name."""
        release_memory()
        before = read_resident_memory("VmRSS")
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the highest resident size
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        highest = read_resident_memory("VmHWM")
        self.above[name], self.peak = highest - before, max(self.peak, highest)

    def row(self) -> Row:
        """Return <phase>_s and <phase>_gib for each phase, and peak_gib."""
        seconds = {f"{name}_s": value for name, value in self.seconds.items()}
        return seconds | {f"{name}_gib": value for name, value in self.above.items()} | {"peak_gib": self.peak}


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
    with suppress(OSError, AttributeError):  # the system has no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
