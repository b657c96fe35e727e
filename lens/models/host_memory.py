"""Refuses to load what the memory of this host cannot hold, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import safe_open

from lens.errors import ConfigError

GIB = 2**30
MEMINFO, CGROUP_LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


def read_available_memory() -> float:
    """Return the bytes that processes may still take on this host, or in its container; infinity where unknown."""
    found = [float("inf")]
    with suppress(OSError, StopIteration):
        line = next(line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # "max" is no limit
        found.append(int(CGROUP_LIMIT.read_text()))
    return min(found)


def check_host_memory(name_or_path: str, needs: Mapping[str, float], key: str = "model.name_or_path") -> None:
    """Refuse a model for which this host has too little memory.

    Args:
        name_or_path: the model.
        needs: what each process of this host takes, in bytes.
        key: the config key that names the model.

    Raises:
        ConfigError: the processes of this host need more than is available; the message has the numbers.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed, available = processes * sum(needs.values()), read_available_memory()
    if needed <= available:
        return
    parts = ", ".join(f"{what} {size / GIB:.1f}" for what, size in needs.items() if size > 0)
    each = f"{processes} processes need {needed / GIB:.1f} GiB" if processes > 1 else f"it needs {needed / GIB:.1f} GiB"
    valid = f"must fit into this host's memory: {each} (each: {parts}), and {available / GIB:.1f} GiB are available"
    raise ConfigError(key, name_or_path, valid)


def count_stored(files: Sequence[str]) -> int:
    """Return how many numbers the tensors of some safetensors have, from their headers alone."""
    total = 0
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                size = 1
                for width in opened.get_slice(name).get_shape():
                    size *= width
                total += size
    return total
