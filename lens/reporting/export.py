"""Writes tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from lens.reporting.intervals import Difference, Estimate

TEXT_COLUMNS = (
    "part",
    "arm",
    "cell",
    "against",
    "model",
    "data",
    "algorithm",
    "evaluated on",
    "numbers",
)  # aligned to the left; the other columns are numbers
LATEX_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
LATEX_SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"} | {"±": r"$\pm$", "·": r"$\cdot$"}


def write_table(table: pd.DataFrame, caption: str, path: Path) -> None:
    """Write a table to <path>.csv, <path>.md and <path>.tex."""
    split_intervals(table).to_csv(path.with_suffix(".csv"), index=False)
    path.with_suffix(".md").write_text(to_markdown(table))
    path.with_suffix(".tex").write_text(to_latex(table, caption))


def split_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with a column for each number: <name>, <name> half-width, and <name> low, high and verdict."""
    columns = {}
    for name in table.columns:
        cells = list(table[name])
        if not any(isinstance(cell, Estimate) for cell in cells):
            columns[name] = cells
            continue
        columns[name] = [cell.mean if isinstance(cell, Estimate) else cell for cell in cells]
        columns[f"{name} half-width"] = [getattr(cell, "half_width", None) for cell in cells]
        if any(isinstance(cell, Difference) for cell in cells):
            for field in ("low", "high", "verdict"):
                columns[f"{name} {field}"] = [getattr(cell, field, None) for cell in cells]
    return pd.DataFrame(columns)


def to_markdown(table: pd.DataFrame) -> str:
    """Return the table in Markdown, with numbers to the right."""
    head = [str(column) for column in table.columns]
    rule = ["---" if column in TEXT_COLUMNS else "---:" for column in head]
    rows = [[str(value).strip() for value in row] for row in table.itertuples(index=False)]
    escaped = [[cell.replace("|", r"\|") for cell in cells] for cells in [head, rule, *rows]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


def to_latex(table: pd.DataFrame, caption: str) -> str:
    """Return the table in LaTeX, for ``\\usepackage{booktabs}``; repeated values of the first column are left out."""
    columns = list(table.columns)
    alignment = "".join("l" if name in TEXT_COLUMNS else "r" for name in columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
    ]
    lines += [r"\toprule", " & ".join(map(latex_text, columns)) + r" \\", r"\midrule"]
    previous = None
    for row in table.itertuples(index=False):
        first, *others = row
        if previous not in (None, first) and table.iloc[:, 0].duplicated().any():
            lines.append(r"\midrule")
        shown = "" if first == previous else latex_text(first)
        lines.append(" & ".join([shown, *map(latex_cell, others)]) + r" \\")
        previous = first
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def latex_cell(value: object) -> str:
    """Return a cell in LaTeX; a `Difference` takes several lines."""
    if not isinstance(value, Difference):
        return latex_text(value)
    first, *others = map(latex_text, value.lines)
    return r"\shortstack[r]{" + r" \\ ".join([first, *(rf"{{\scriptsize {line}}}" for line in others)]) + "}"


def latex_text(value: object) -> str:
    """Return text with LaTeX's special characters escaped; negative numbers get a real minus."""
    escaped = "".join(LATEX_SPECIAL.get(character, character) for character in str(value))
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)
