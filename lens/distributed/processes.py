"""Tells a process its rank, notes SIGTERM, ends with the parent process, and exits."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
TERMINATED = threading.Event()  # set once SIGTERM has come to this process


def rank() -> int:
    """Return this process's number among those that were launched together; 0 if it is alone."""
    return int(os.environ.get("RANK", "0"))


def is_one_of_several() -> bool:
    """Return whether torchrun, or a launcher that sets the same variables, has started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, for whatever reason. Works on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_at_once(code: int = 0) -> None:
    """Exit without the interpreter's shutdown.

    During that shutdown a gloo thread that frees its last tensor would abort the process.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
