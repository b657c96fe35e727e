"""Writes files so that a path holds either a complete file or none, even after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing pandas takes half a second, and callers with a frame have it already
    import pandas as pd

SOURCE = Path(__file__).resolve().parent.parent  # the folder that holds lens/ and configs/
CONFIGS = SOURCE / "configs"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file written there is renamed to ``path`` when the block ends.

    If the block raises, ``path`` stays as it was.
    """
    unfinished = path.with_suffix(".unfinished")
    yield unfinished
    unfinished.replace(path)


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a parquet file under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        frame.to_parquet(unfinished, index=False)


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n")


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
