"""What a process is told of others: which of several it is, and when the one that it works for has ended."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
TERMINATED = threading.Event()  # SIGTERM has come to this process


def rank() -> int:
    """This process's number among those that were launched together."""
    return int(os.environ.get("RANK", "0"))


def is_one_of_several() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, has started several of this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that ends; Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_at_once() -> None:
    """End this process, which is done, without the interpreter's farewell.

    In the middle of that, a thread of gloo that lets go of its last tensor would abort the process.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
