"""Counts problems, by the row counts of sources where those are known, so that nothing need be downloaded."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from lens.problems import load_problems
from lens.problems.worlds import list_worlds

ROWS = {"math/train": 7_500, "math/test": 5_000, "math500/test": 500, "dapo/train": 17_917, "numina/train": 896_000}


def num_problems(sources: DictConfig) -> int:
    """Return how many problems the sources of a dataset or of evaluation sets give at most.

    Those of a world with a size are as many. Other problems that this machine makes or has in a file are loaded.

    Raises:
        ConfigError: a source is unknown, or has no problems.
    """
    total = 0
    for node in sources.values():
        if not OmegaConf.is_dict(node):
            continue
        if rows := ROWS.get(f"{node.source}/{node.split}"):
            total += rows if node.size is None else min(node.size, rows)
        elif node.source in list_worlds() and node.size is not None:
            total += node.size
        else:
            total += len(load_problems(**node))
    return total
