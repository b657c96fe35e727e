"""Writes tables, figures and stored answers to one HTML page, which needs no other file and no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lens.files import replacing
from lens.reporting.arms import Arm
from lens.reporting.export import TEXT_COLUMNS
from lens.reporting.intervals import Difference
from lens.reporting.page.browser import FIELDS, BrowsedRun
from lens.reporting.paper import MISSING

PAGE = Path(__file__).parent
LISTED = 4  # settings that fit into the title and the bar of links
# The caption of a table, and the table.
Captioned = tuple[str, pd.DataFrame]


@dataclass(frozen=True)
class Section:
    """The page's section on one setting.

    Attributes:
        title: experiment, model and training set.
        tables: the tables that are open at first.
        accuracy: the table of accuracy by level, which is folded at first; None if there is none.
        figures: title -> PNG.
        is_wide: whether the figures are two columns wide.
    """

    title: str
    tables: Sequence[Captioned]
    accuracy: Captioned | None
    figures: dict[str, Path]
    is_wide: bool = False


def write_page(
    path: Path,
    *,
    headlines: Sequence[str],
    notes: Sequence[str],
    results: pd.DataFrame,
    sections: Sequence[Section],
    paper: Sequence[Captioned],
    paper_runs: bool,
    compute: Sequence[Captioned],
    arms: Sequence[Arm],
    browsed: Sequence[BrowsedRun],
) -> Path:
    """Write the page. Everything that comes from a run, such as a model's answers, is escaped or embedded as JSON."""
    runs = [
        {"label": run.label, "seed": run.seed, "steps": [{"key": c.key, "step": c.step} for c in run.chunks]}
        for run in browsed
    ]
    chunks = [chunk for run in browsed for chunk in run.chunks]
    values = {
        "title": f"Report: {make_heading(sections, arms)}",
        "headlines": headlines,
        "lead": make_lead(arms),
        "is_long": len(sections) > LISTED,
        "notes": notes,
        "results": make_cells(results),
        "sections": [
            {
                "title": section.title,
                "tables": [(caption, make_cells(table)) for caption, table in section.tables],
                "accuracy": section.accuracy and (section.accuracy[0], make_cells(section.accuracy[1])),
                "is_wide": section.is_wide,
                "figures": [(title, base64.b64encode(p.read_bytes()).decode()) for title, p in section.figures.items()],
            }
            for section in sections
        ],
        "paper": [(caption, make_cells(table)) for caption, table in paper],
        "paper_runs": paper_runs,
        "compute": [(caption, make_cells(table)) for caption, table in compute],
        "machines": list_machines(arms),
        "runs": runs,
        "answers": f"{sum(len(group['answers']) for chunk in chunks for group in chunk.groups):,}",
        "index": embed_json({"fields": FIELDS, "runs": runs}),
        "chunks": [(chunk.key, embed_json(chunk.groups)) for chunk in chunks],
        "css": (PAGE / "page.css").read_text(),
        "scripts": (PAGE / "latex.js").read_text() + (PAGE / "browser.js").read_text(),
    }
    template = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined)
    with replacing(path) as unfinished:
        unfinished.write_text(template.get_template("page.html.j2").render(values), encoding="utf-8")
    return path


def make_heading(sections: Sequence[Section], arms: Sequence[Arm]) -> str:
    """Return the titles of the settings, or a summary of the experiments if there are many settings."""
    if len(sections) <= LISTED:
        return " | ".join(section.title for section in sections)
    first, *others = dict.fromkeys(arm.experiment for arm in arms)
    return f"{first} and {len(others)} other experiments" if others else first


def make_lead(arms: Sequence[Arm]) -> str:
    """Return the page's first sentence: how many runs there are, and of which arms.

    It does not list many arms, as the first table does.
    """
    runs = f"{sum(len(arm.runs) for arm in arms)} finished runs"
    if len(arms) > 3 * LISTED:
        return f"{runs} of {len(arms)} arms."
    return f"{runs}: " + ", ".join(f"{arm.label} ({len(arm.runs)})" for arm in arms)


def embed_json(value: Any) -> str:
    """Return JSON for a script element; ``<`` is escaped, so that no text can close the element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def make_cells(table: pd.DataFrame) -> dict[str, Any]:
    """Return a table as the template takes it.

    Repeated values of the first column are left out. A difference has its intervals and its verdict in small lines.
    """
    words = [name in TEXT_COLUMNS for name in table.columns]
    rows, previous = [], None
    for values in table.itertuples(index=False):
        first, *others = values
        cells = [{"text": "" if first == previous else str(first), "look": choose_look(first, words[0]), "small": []}]
        for value, is_words in zip(others, words[1:], strict=True):
            text, *small = value.lines if isinstance(value, Difference) else [str(value)]
            cells.append({"text": text, "look": choose_look(value, is_words), "small": small})
        rows.append({"cells": cells, "first": first != previous})
        previous = first
    return {"head": [{"text": n, "words": w} for n, w in zip(table.columns, words, strict=True)], "rows": rows}


def choose_look(value: object, is_words: bool) -> str:
    """Return the CSS classes of a cell."""
    looks = ["words"] if is_words else []
    if isinstance(value, Difference):
        looks.append(value.verdict)
    if str(value) == MISSING:
        looks.append(MISSING)
    return " ".join(looks)


def list_machines(arms: Sequence[Arm]) -> list[str]:
    """Return a line for each machine and source that runs came from, without duplicates."""
    lines = []
    for run in (run for arm in arms for run in arm.runs):
        file = run.folder / "provenance.json"
        try:
            told = json.loads(file.read_text())
        except (OSError, ValueError):  # the file is missing or damaged
            continue
        machine, git = told["machine"], told["git"]
        source = (
            f"commit {git['commit'][:10]}{' with changes' if git['dirty'] else ''}" if git["commit"] else "no commit"
        )
        gpus = ", ".join(machine["gpus"]) or "no GPU"
        packages = ", ".join(f"{name} {told['packages'][name]}" for name in ("torch", "transformers"))
        lines.append(f"{machine['platform']}, {machine['cpus']} cores, {gpus}; {packages}; {source}")
    return list(dict.fromkeys(lines))
