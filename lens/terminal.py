"""Prints tables in the terminal."""

from __future__ import annotations

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDEST = 1000  # characters; outside a terminal, tables are not folded
NARROWEST_TEXT = 10  # characters; in a narrow terminal, columns of text fold to this width and numbers stay whole


def show_table(title: str, table: pd.DataFrame) -> None:
    """Print a table; consecutive rows with the same first value print it once."""
    printed = Table(title=escape(title), title_justify="left", title_style="bold")
    for column in table.columns:
        is_text = table[column].map(lambda value: isinstance(value, str)).all() and not column.startswith("pass@")
        if is_text:
            printed.add_column(column, overflow="fold", min_width=min(NARROWEST_TEXT, table[column].str.len().max()))
        else:
            printed.add_column(column, justify="right", no_wrap=True, min_width=table[column].map(str).str.len().max())
    grouped = table.iloc[:, 0].duplicated().any()
    previous = None
    for _, row in table.iterrows():
        first, *others = (escape(str(value)) for value in row)
        if grouped and previous not in (None, first):
            printed.add_section()
        printed.add_row("" if first == previous else first, *others)
        previous = first
    console = Console()
    width = console.width if console.is_terminal else WIDEST
    smallest = console.measure(printed, options=console.options.update(width=WIDEST)).minimum
    Console(width=max(width, smallest)).print(printed)
