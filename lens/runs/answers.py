"""Finds the answers that a run or an evaluation has stored, and reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lens.errors import ConfigError


def find_answers(
    run: Path, kind: Literal["evaluations", "rollouts"], step: int | None = None
) -> dict[int | None, Path]:
    """Find the parquet files with a row per answer, by step, in order.

    Args:
        run: a run folder, or the folder of one evaluation, whose only step is None.
        kind: evaluations for answers of evaluations, rollouts for answers that were trained on.
        step: find the file of this step only; None finds all.

    Raises:
        ConfigError: there is no such folder, or it holds nothing of that kind or step.
    """
    if not run.is_dir():
        raise ConfigError("run", str(run), "must be a run folder, or a folder that evaluate.py wrote (there is none)")
    ending = "_completions" if kind == "evaluations" else ""
    files: dict[int | None, Path] = {
        int(file.stem.removeprefix("step_").removesuffix(ending)): file
        for file in sorted((run / kind).glob(f"step_*{ending}.parquet"))
    }
    if kind == "evaluations" and (single := run / "completions.parquet").is_file():
        files[None] = single
    if not files:
        raise ConfigError("run", str(run), f"must be a folder with the answers of {kind} (it has none)")
    if step is None:
        return files
    if step not in files:
        steps = ", ".join(str(known) for known in files if known is not None) or "null, as it is one evaluation"
        raise ConfigError("step", step, f"must be one that is stored: {steps}")
    return {step: files[step]}


def read_answers(file: Path, columns: Sequence[str] | None = None, optional: Sequence[str] = ()) -> pd.DataFrame:
    """Read the rows of one file: all columns, or the named ones and those of the optional ones that it has.

    Raises:
        ConfigError: the file cannot be read, or lacks a column.
    """
    try:
        known = pq.read_schema(file).names
        if missing := [column for column in columns or () if column not in known]:
            raise ConfigError("run", str(file), f"must be a file with the column {', '.join(missing)}")
        also = [column for column in optional if column in known]
        return pd.read_parquet(file, columns=None if columns is None else [*columns, *also])
    except (OSError, pa.ArrowException) as error:
        raise ConfigError("run", str(file), f"must be a parquet file that can be read ({error})") from error
