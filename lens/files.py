"""Writes files so that a path holds either a complete file or none, even after a kill."""

from __future__ import annotations

import json
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
