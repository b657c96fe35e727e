"""Progress bars with the time left."""

from __future__ import annotations

import sys
import threading
from typing import Any

from tqdm import tqdm

# No bar is shared between processes; tqdm's own lock would be a semaphore, which a killed process leaves behind.
tqdm.set_lock(threading.RLock())


def progress_bar(total: int | None, *, unit: str = "step", **options: Any) -> tqdm:
    """A progress bar with the time left; where nobody watches it, in a log file, it writes a line in 30 seconds.

    There a bar inside another does not move the cursor to a line of its own.
    """
    if sys.stderr.isatty():
        return tqdm(total=total, unit=unit, mininterval=0.2, dynamic_ncols=True, **options)
    return tqdm(total=total, unit=unit, mininterval=30.0, position=0, **options)


def close_open_bars() -> None:
    """Let what is printed next start on a line of its own."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
