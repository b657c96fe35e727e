"""Reads what W&B stores in a run folder: the run's id, and how much of the history has reached its files.

W&B writes in blocks, in a process of its own. So a kill loses what it was given shortly before.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from wandb.proto.wandb_internal_pb2 import Record

from lens.files import replacing

BLOCK, HEADER, PART_HEADER = 32768, 7, 7  # bytes
WHOLE, LAST = 1, 4  # types of a part: a whole record, its last part; the others are first and middle parts


def remember_run_id(folder: Path) -> str:
    """Return the id of a run folder's W&B run; the first call makes it, before there is a checkpoint to hold it."""
    file = folder / "wandb" / "run_id"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as unfinished:
            unfinished.write_text(secrets.token_hex(4))
    return file.read_text()


def count_lines_in_wandb(folder: Path, run_id: str) -> int:
    """Count the history steps 0, 1, 2, ... of a run in the files that its earlier starts wrote."""
    steps = [
        record.history.step.num
        for file in folder.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")
        for record in read_records(file.read_bytes())
        if record.HasField("history")
    ]
    return max(steps, default=-1) + 1


def read_records(data: bytes) -> Iterator[Record]:
    """Yield the complete records of a .wandb file, up to where a kill cut it off.

    After a header, the format is LevelDB's log: blocks of 32 KiB that hold records or parts of records. Before each
    part stand a checksum (4 bytes), its length (2) and its type (1).
    """
    place, parts = HEADER, b""
    while place + PART_HEADER <= len(data):
        if (left := BLOCK - place % BLOCK) < PART_HEADER:  # padding
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        start = place + PART_HEADER
        place = start + length
        if kind == 0 or place > len(data):
            return
        parts += data[start:place]
        if kind in (WHOLE, LAST):
            try:
                yield Record.FromString(parts)
            except DecodeError:
                return
            parts = b""
