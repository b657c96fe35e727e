"""The file of finished campaigns, a JSON line each, and the table of what is in it."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.support.command_line import ROOT

Line = dict[str, Any]


def name_state() -> str:
    """A name for the code and the machine: the commit, and a hash of what is not committed and of the processor."""
    here = subprocess.check_output(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, text=True).strip()
    changes = subprocess.check_output(["git", "diff", "HEAD", "--", "lens", "configs", "scripts", "tests"], cwd=ROOT)
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model", "flags"))]
    machine = f"{platform.python_version()} {sorted(set(cpu))}".encode()
    dirty = "-changed" if changes else ""
    return f"{here}{dirty}-{hashlib.sha256(changes + machine).hexdigest()[:6]}"


def read(file: Path, seed: int | None = None) -> list[Line]:
    """The lines of a ledger, of one seed or of all; half a line, left by a kill, is none."""
    text = file.read_text() if file.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if seed in (None, line["seed"])]


def add(file: Path, line: Line) -> None:
    """Append a line, after cutting off half a one."""
    text = file.read_text() if file.exists() else ""
    file.write_text(text[: text.rfind("\n") + 1] + json.dumps(line) + "\n")


def count_kills(lines: Iterable[Line]) -> int:
    """How many kills the campaigns had."""
    return sum(len(line["kills"]) for line in lines)


WHO = {"machine": "all processes at once", "first": "the first process alone", "second": "the second process alone"}
# A row of the first table: its name, and the campaigns that it counts.
ROWS: dict[str, Callable[[Line], bool]] = {
    "all": lambda line: True,
    "one process, transformers": lambda line: (line["processes"], line["sampler"]) == (1, "transformers"),
    "two processes, transformers": lambda line: (line["processes"], line["sampler"]) == (2, "transformers"),
    "one process, vLLM": lambda line: (line["processes"], line["sampler"]) == (1, "vllm"),
    "two processes, vLLM": lambda line: (line["processes"], line["sampler"]) == (2, "vllm"),
    "all weights trained": lambda line: not line["adapters"],
    "adapters trained": lambda line: line["adapters"],
    "one update a round": lambda line: line["updates"] == 1,
    "two updates a round": lambda line: line["updates"] == 2,
    "the disk full now and then": lambda line: line["disk"],
    "`max_steps` raised after an end": lambda line: len(line["stages"]) > 1,
}


def tables(lines: list[Line]) -> str:
    """What was killed, where, and how it ended, in markdown."""
    seeds = sorted({line["seed"] for line in lines})
    kills = [kill for line in lines for kill in line["kills"]]
    hours = sum(line["seconds"] for line in lines) / 3600
    told = f"Commit {lines[0]['commit']}, seed {', '.join(map(str, seeds))}: {len(kills)} kills in {len(lines)} runs, "
    told += f"{sum(len(line['full']) for line in lines)} times a full disk; {hours:.1f} hours."
    parts = [told, "", "| runs | runs | kills | bit-equal ends |", "|---|---:|---:|---:|"]
    for name, counts in ROWS.items():
        some = [line for line in lines if counts(line)]
        equal = sum(line["difference"] is None for line in some)
        parts.append(f"| {name} | {len(some)} | {count_kills(some)} | {equal} |")
    aims = {"moment": "at a random moment", "write": "before a write"}
    counted = {
        "killed": Counter(aims.get(kill["aim"], "in a chosen phase") for kill in kills),
        "what was killed": Counter(WHO[kill["who"]] for kill in kills),
        "what the run did": Counter(kill["phase"] for kill in kills),
    }
    for title, counts in counted.items():
        parts += ["", f"| {title} | kills |", "|---|---:|"]
        parts += [f"| {name} | {count} |" for name, count in counts.most_common()]
    places = Counter(kill["write"] for kill in kills if kill["write"])
    known = {write for line in lines for write in line["writes"]}
    parts += ["", f"Of {len(known)} kinds of write in the run folder, {len(places)} were killed before they happened."]
    return "\n".join(parts)
