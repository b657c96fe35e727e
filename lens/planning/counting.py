"""Counts problems without reading them, by the row counts of their sources."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from lens.errors import ConfigError
from lens.problems import load_problems
from lens.problems.worlds import list_worlds

ROWS = {"math/train": 7_500, "math/test": 5_000, "math500/test": 500, "dapo/train": 17_917, "numina/train": 896_000}


def num_problems(sources: DictConfig) -> int:
    """Return how many problems the sources of a dataset or of evaluation sets give at most, by upstream's row counts.

    Raises:
        ConfigError: a source is unknown.
    """
    total = 0
    for node in sources.values():
        if not OmegaConf.is_dict(node):
            continue
        if node.source in list_worlds():
            total += len(load_problems(**node)) if node.size is None else node.size
        else:
            rows = ROWS.get(f"{node.source}/{node.split}")
            if rows is None:
                known = ", ".join([*sorted(key.replace("/", " ") for key in ROWS), *list_worlds()])
                raise ConfigError("dataset", f"{node.source} {node.split}", f"must be one of {known}")
            total += rows if node.size is None else min(node.size, rows)
    return total
