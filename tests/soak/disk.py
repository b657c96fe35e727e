"""A disk of its own for a run: small, and full when the soak wants it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_MB = 48


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A small file system on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a file system."""
    try:
        with small_disk(folder):
            return True
    except subprocess.CalledProcessError:
        return False


def fill(folder: Path, left: int) -> None:
    """Fill a small disk but for some bytes."""
    with (folder / "filler").open("wb") as filler:
        filler.write(b"0" * max(0, shutil.disk_usage(folder).free - left))
