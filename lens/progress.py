"""Makes progress bars that show the time left."""

from __future__ import annotations

import sys
import threading
from typing import Any

from tqdm import tqdm

# A thread lock is enough, as processes share no bar. tqdm's default lock is a semaphore, which a killed process leaks.
tqdm.set_lock(threading.RLock())


def progress_bar(total: int | None, *, unit: str = "step", **options: Any) -> tqdm:
    """Make a progress bar that shows the time left.

    Outside a terminal, as in a log file, it writes one line every 30 seconds, and a bar inside another does not move
    the cursor.
    """
    if sys.stderr.isatty():
        return tqdm(total=total, unit=unit, mininterval=0.2, dynamic_ncols=True, **options)
    return tqdm(total=total, unit=unit, mininterval=30.0, position=0, **options)


def close_open_bars() -> None:
    """Close all open bars, so that the next output starts on a new line."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
