"""What a process is told of others: which of several it is, and when the one that it works for has ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


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
