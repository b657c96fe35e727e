"""Keeps freed memory in the process, so that the next tensor of a CPU finds pages that are there already."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# Parameters of glibc's mallopt, and its largest value.
M_TRIM_THRESHOLD, M_MMAP_MAX, MOST = -1, -4, 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors instead of giving it back to the system.

    By default it maps every tensor above 32 MiB anew, and the kernel fills each page with zeros before its first use.
    On a virtual machine that takes up to a third of an update. torch keeps a GPU's memory for the same reason. Where
    there is no glibc, nothing changes.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, MOST)
