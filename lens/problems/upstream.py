"""Reads the rows of a source as their publisher wrote them, from a local file or the Hugging Face hub.

The library ``datasets`` reads the hub and Parquet files. It keeps a copy in its cache, so a second run starts at once,
even without a network. With ``streaming`` it keeps none: rows are passed on as they are read, and DAPO's 1.8 million
rows take no room on the disk. JSON files are read row by row (see `JsonRows`), without a copy.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetsError

from lens.errors import ConfigError
from lens.problems.json_rows import JsonRows, Row

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# What ``datasets`` raises for a file, a hub or a cache that it cannot use.
LOAD_ERRORS = (DatasetsError, OSError, ValueError)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Upstream:
    """The rows of one source in upstream's form, with the names that error messages use for them.

    Args:
        source: the name of the source, such as ``math``.
        rows: the rows with all of upstream's columns: from JSON files, cached or streaming.
        columns: the columns that are needed; a nested column has a dotted name.
        origin_key: the config key that says where the rows come from, such as ``dataset.math.path``.
        origin: its value: a file, or a hub repository with its revision.
    """

    source: str
    rows: Dataset | IterableDataset | JsonRows
    columns: Sequence[str]
    origin_key: str
    origin: str

    def batches(self) -> Iterator[pa.Table]:
        """Yield the needed columns, a thousand rows at a time. Only these are in memory.

        Raises:
            ConfigError: rows cannot be read, there are none, a column is missing, or its values are of several types.
        """
        num_before = 0
        for batch in self._read():
            yield batch if isinstance(batch, pa.Table) else self._make_table(batch, num_before)
            num_before += len(batch)

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        """Yield each row with its number in its file (or files, in order), counted from 1."""
        batches = (batch.to_pylist() if isinstance(batch, pa.Table) else batch for batch in self._read())
        return enumerate((row for batch in batches for row in batch), start=1)

    def _read(self) -> Iterator[pa.Table | list[Row]]:
        """Yield the needed columns of a thousand rows at a time: as rows from JSON, as a table from all else."""
        size, num_rows, from_json = 1000, 0, isinstance(self.rows, JsonRows)
        batches = self.rows.batches(size) if from_json else self.rows.with_format("arrow").iter(batch_size=size)
        batches = iter(batches)
        while True:
            try:
                batch = next(batches, None)
            except LOAD_ERRORS as error:
                reason = f"cannot be read{' as json' if from_json else ''}: {error.__cause__ or error}"
                raise ConfigError(self.origin_key, self.origin, reason) from error
            if batch is None:
                break
            batch = batch if from_json else batch.flatten()
            names = list(dict.fromkeys(name for row in batch for name in row)) if from_json else batch.column_names
            if missing := [column for column in self.columns if column not in names]:
                has = f"which {self.source} needs; it has {', '.join(names)}"
                raise ConfigError(self.origin_key, self.origin, f"has no column {', '.join(missing)}, {has}")
            num_rows += len(batch)
            needed = list(self.columns)
            yield [{name: row.get(name) for name in needed} for row in batch] if from_json else batch.select(needed)
        if num_rows == 0:
            raise ConfigError(self.origin_key, self.origin, "cannot be read: it has no rows")

    def _make_table(self, rows: list[Row], num_before: int) -> pa.Table:
        """Return rows as a table; ``num_before`` rows were read before these."""
        arrays = {}
        for name in self.columns:
            values = [row[name] for row in rows]
            try:
                arrays[name] = pa.array(values)
            except pa.ArrowException as error:
                place = next(n for n in range(len(values)) if not is_of_one_type(values[: n + 1]))
                reason = f"{name} is {values[place]!r}, of another type than in the rows before"
                raise self.refuse(num_before + place + 1, reason) from error
        return pa.table(arrays)

    def refuse(self, number: int, reason: str) -> ConfigError:
        """Return the error to raise for a row that cannot be used."""
        where = self.rows.locate(number) if isinstance(self.rows, JsonRows) else "counted from 1"
        return ConfigError(self.origin_key, self.origin, f"row {number} ({where}): {reason}")


def is_of_one_type(values: list[Any]) -> bool:
    """Return whether Arrow finds a type that all values have."""
    try:
        pa.array(values)
    except pa.ArrowException:
        return False
    return True


def read_upstream(
    source: str,
    *,
    path: str | None,
    split: str | None,
    repo: str,
    revision: str,
    streaming: bool,
    key: str,
    splits: Sequence[str],
    columns: Sequence[str],
) -> Upstream:
    """Read one split of one source, from ``path`` if it is given and from the hub otherwise.

    Args:
        source: the name of the source.
        path: a JSONL, JSON or Parquet file in upstream's form. A pattern such as ``train-*.parquet`` takes several.
        split: one of ``splits``. None: the first of them.
        repo: the hub repository, as owner/name.
        revision: commit, tag or branch of that repository.
        streaming: pass the rows on as they are read, without a copy in the cache. The problems are the same.
        key: where the source stands in the config, such as ``dataset.math``; error messages name keys below it.
        splits: the splits that upstream has.
        columns: the columns to read, with dots where they are nested.

    Raises:
        ConfigError: the split is unknown, a file is missing or cannot be read, or the hub is out of reach.
    """
    if type(streaming) is not bool:
        raise ConfigError(f"{key}.streaming", streaming, "must be true or false")
    if split not in (None, *splits):
        raise ConfigError(f"{key}.split", split, f"{source} has {' and '.join(splits)}")
    if path is not None:
        origin_key, origin = f"{key}.path", str(path)
        rows = read_files(path, origin_key, streaming)
    else:
        split = split or splits[0]
        origin_key, origin = f"{key}.repo", f"{repo}@{revision} {split}"
        rows = read_hub(repo, revision, split, key, columns, streaming)
    return Upstream(source, rows, columns, origin_key, origin)


def find_files(path: str, key: str) -> list[str]:
    """Return the files that a path or pattern names, in the order of their names.

    ``key`` is where it stands in the config, for error messages.

    Raises:
        ConfigError: there are none, or one is a folder, empty, or of a kind that cannot be read.
    """
    expanded = os.path.abspath(Path(path).expanduser())
    files = [expanded] if os.path.exists(expanded) else sorted(glob.glob(expanded))
    if not files:
        raise ConfigError(key, path, "there is no such file")
    for file in files:
        if os.path.isdir(file):
            raise ConfigError(key, path, "is a folder; give the file in it, or a pattern such as FOLDER/*.parquet")
        if Path(file).suffix not in READERS:
            raise ConfigError(key, path, f"must end in {', '.join(READERS)}")
        if os.path.getsize(file) == 0:
            raise ConfigError(key, path, "is empty")
    return files


def read_files(path: str, key: str, streaming: bool) -> Dataset | IterableDataset | JsonRows:
    """Read the rows of one local file, or of all files that a pattern matches, in the order of their names."""
    files = find_files(path, key)
    kinds = {READERS[Path(file).suffix] for file in files}
    if len(kinds) > 1:
        raise ConfigError(key, path, "matches files of different kinds")
    (kind,) = kinds
    if kind == "json":
        return JsonRows(files)
    try:
        files = [glob.escape(file) for file in files]
        return load_dataset(kind, data_files=files, split="train", streaming=streaming)
    except LOAD_ERRORS as error:
        raise ConfigError(key, path, f"cannot be read as {kind}: {error.__cause__ or error}") from error


def read_hub(
    repo: str, revision: str, split: str, key: str, columns: Sequence[str], streaming: bool
) -> Dataset | IterableDataset:
    """Read one split of a hub repository at exactly this revision, from the cache if it is there."""
    try:
        builder = load_dataset_builder(repo, revision=revision)
        if streaming:
            rows = builder.as_streaming_dataset(split=split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=split)
    except RuntimeError as error:  # so datasets refuses a repository with a loading script
        valid = f"must be a repository of data files, as no code of a repository is run ({error})"
        raise ConfigError(f"{key}.repo", repo, valid) from error
    except LOAD_ERRORS as error:
        remedy = (
            f"{repo} at revision {revision} is neither in reach nor in the cache ({error}). Connect to the hub once, "
            f"or download the {split} split from huggingface.co/datasets/{repo} and set {key}.path to the file "
            f"(JSONL, JSON or Parquet with {', '.join(columns)})"
        )
        raise ConfigError(f"{key}.path", None, remedy) from error
    # Without a network ``datasets`` takes the revision that was cached last, whatever revision was asked for.
    if COMMIT.fullmatch(revision) and builder.hash != revision:
        valid = f"not in reach, and the cache holds {repo} at {builder.hash}: connect, set {key}.path, or take that one"
        raise ConfigError(f"{key}.revision", revision, valid)
    return rows
