"""Files that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what shall stand at a path: beside it, and it is renamed when it is whole."""
    unfinished = path.with_suffix(".unfinished")
    yield unfinished
    unfinished.replace(path)
