"""What an objective remembers, as a file in a trainer's checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lens.objectives.inputs import InputError

MEMORY = "lens_objective.json"  # its name in the folder of the checkpoint


def write_memory(file: Path, memory: dict[str, Any]) -> None:
    """Write the memory; a file that is there is replaced whole or not at all."""
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(memory))
    os.replace(unfinished, file)


def read_memory(file: Path) -> dict[str, Any]:
    """Return the memory.

    Raises:
        InputError: the checkpoint has none: another objective made it, or it was cut off while it was written.
    """
    if not file.exists():
        how = "the objective remembers earlier rounds, and this checkpoint was made without it or was cut off"
        raise InputError(f"{file} is missing: {how}. Go on from an earlier checkpoint")
    return json.loads(file.read_text())
