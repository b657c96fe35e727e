"""Writes a checkpoint's model to a folder of its own, which anybody can load."""

from __future__ import annotations

from pathlib import Path

from lens.commands.evaluate import locate_checkpoint
from lens.errors import ConfigError
from lens.runs.checkpoints import TRAINING_ONLY, load_state
from lens.runs.parts import write_model_folder


def export(checkpoint: str, target: Path) -> Path:
    """Write the Hugging Face folder of a run's latest checkpoint, or of a checkpoint, and return it.

    Weights that several processes have saved in parts become whole files, a tensor at a time.

    Args:
        checkpoint: a run folder, or a checkpoint.
        target: the folder to write to.

    Raises:
        ConfigError: there is no complete checkpoint, or the target exists or lies in it.
    """
    place = Path(locate_checkpoint(checkpoint)[1])
    if target.exists() or target.resolve().is_relative_to(place.resolve()):
        raise ConfigError("target", str(target), "must be a folder that does not exist yet, outside of the checkpoint")
    load_state(place, "checkpoint")
    write_model_folder(place, target, TRAINING_ONLY)
    print(f"{place} as a Hugging Face folder: {target}")
    return target
