"""Files that are there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # pandas takes half a second to load, and only callers that have a frame need it
    import pandas as pd

SOURCE = Path(__file__).resolve().parent.parent  # the folder that holds lens/ and configs/
CONFIGS = SOURCE / "configs"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what shall stand at a path: beside it, and it is renamed when it is whole."""
    unfinished = path.with_suffix(".unfinished")
    yield unfinished
    unfinished.replace(path)


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a parquet file beside its place and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        frame.to_parquet(unfinished, index=False)


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file beside its place and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n")
