"""Turns arms of many settings into a map of where an objective helps.

A cell of the map is a setting with one factor changed; each row compares two arms, mostly of one cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, NullLocator

from lens.config.keys import NOT_COMPARED, shorten_key
from lens.reporting.arms import Arm, make_label, natural_sort_key
from lens.reporting.figures import COLUMN_WIDTH, STYLE, finish_figure, line_look, plt
from lens.reporting.intervals import Difference
from lens.reporting.pairing import find_twin, pair_runs
from lens.reporting.tables import find_ks, find_members, find_parts, signal_table

MIDDLE = "(middle)"  # the cell in which nothing is changed
LINEAR = 5  # points; beyond, the figure's axis is logarithmic, so that a collapse of 60 points leaves room for the rest
TICKS = (-50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50)
ROW_HEIGHT = 0.17  # inches


def map_table(arms: Sequence[Arm], baseline: str | None) -> pd.DataFrame:
    """Return a row for each comparison: cell, arm, the arm it is compared with, paired differences, and the signal.

    The differences are of pass@k for the smallest and the largest k, over all problems of the first evaluation set. The
    negative groups at the start, their share of the gradient's norm, and the entropy at the end are the arm's. The last
    column is the entropy of the other arm at the end.
    """
    rows = []
    for ours, other in iterate_comparisons(arms, baseline):
        if not (runs := pair_runs(ours, other)):
            continue
        prefix = next(iter(find_parts(ours).values()))
        index, ks = find_members(runs[0][0])[prefix], find_ks(ours, prefix)
        cells = {
            f"pass@{k}": Difference.paired(
                np.stack([(a.pass_at_ks[k] - b.pass_at_ks[k])[index].to_numpy() for a, b in runs])
            )
            for k in dict.fromkeys((ks[0], ks[-1]))
        }
        signal, of_other = signal_table([ours, other]).to_dict("records")
        cell = name_cell(ours, arms)
        rows.append(
            {
                "cell": cell,
                "arm": objective_of(ours),
                "against": objective_of(other) if name_cell(other, arms) == cell else other.variant,
                "seeds": len(runs),
                **cells,
                **{name: signal[name] for name in ("negative at start", "share of gradient", "entropy")},
                "entropy against": of_other["entropy"],
            }
        )
    return pd.DataFrame(rows)


def iterate_comparisons(arms: Sequence[Arm], baseline: str | None) -> Iterator[tuple[Arm, Arm]]:
    """Yield the pairs of arms to compare, cell by cell, the middle first.

    Each arm is compared with the baseline arm that differs only in the objective. Each plain LENS arm of the middle is
    also compared with the controls of its setting. A control is an arm of another objective, or a baseline arm that no
    arm is compared with; if it has an alpha, it must be the same.
    """
    twins = {id(arm): find_twin(arm, arms, baseline) for arm in arms}
    shared = {id(twin) for twin in twins.values()}
    for arm in sorted(arms, key=lambda a: (name_cell(a, arms) != MIDDLE, natural_sort_key(name_cell(a, arms)))):
        if twin := twins[id(arm)]:
            yield arm, twin
    plain = [a for a in arms if is_lens(a) and name_cell(a, arms) == MIDDLE and objective_of(a) == a.runs[0].objective]
    for control in (a for a in arms if not is_lens(a) and id(a) not in shared):
        for ours in (a for a in plain if a.setting == control.setting):
            if alpha_of(control) in (None, alpha_of(ours)):
                yield ours, control


def name_cell(arm: Arm, arms: Sequence[Arm]) -> str:
    """Name an arm's cell by what was changed besides the objective, as it was typed: num_generations=16."""
    common = set.intersection(*(set(a.runs[0].overrides) for a in arms))
    skipped = ("objective", "experiment", "hydra", *NOT_COMPARED)
    changed = [o for o in arm.runs[0].overrides if o not in common and head_of(o) not in skipped]
    return " ".join(re.sub(r"^(dataset|model)\.", "", shorten_key(o.lstrip("+~"))) for o in changed) or MIDDLE


def objective_of(arm: Arm) -> str:
    """Return an arm's objective with the changes to it: lens alpha=16."""
    return make_label(arm.runs[0].objective, [o for o in arm.runs[0].overrides if o.startswith("objective.")])


def head_of(override: str) -> str:
    """Return the first part of an override's key."""
    return override.lstrip("+~").partition("=")[0].split(".")[0]


def is_lens(arm: Arm) -> bool:
    """Return whether an arm's objective is LENS itself, with any settings."""
    return arm.runs[0].config.get("objective", {}).get("_target_") == "lens.objectives.lens_advantages"


def alpha_of(arm: Arm) -> float | None:
    """Return the alpha of an arm's objective, or None if it has none."""
    return arm.runs[0].config.get("objective", {}).get("alpha")


def draw_map(table: pd.DataFrame, path: Path) -> Path:
    """Draw a map's first difference, and save it as PNG and PDF; return the PNG's path."""
    column = next(name for name in table.columns if name.startswith("pass@"))
    with plt.rc_context(STYLE | {"ytick.labelsize": 6}):
        figure, axes = plt.subplots(figsize=(2 * COLUMN_WIDTH, ROW_HEIGHT * len(table) + 0.9), layout="constrained")
        plot_map(axes, table, column)
        label = f"difference in {column} (points; logarithmic beyond {LINEAR}; in brackets: seeds)"
        return finish_figure(figure, [axes], label, path)


def plot_map(axes: plt.Axes, table: pd.DataFrame, column: str) -> None:
    """Draw a forest plot of a map's differences: a point per row, with a thick t and a thin bootstrap interval.

    A point is filled if both intervals leave out zero. The axis is linear between -LINEAR and LINEAR points and
    logarithmic beyond.

    Args:
        axes: the axes to draw on.
        table: the table that `map_table` returned.
        column: the column of the differences, such as ``pass@1``.
    """
    names = list(dict.fromkeys(zip(table["arm"], table["against"], strict=True)))
    for place, row in enumerate(table.to_dict("records")):
        cell, number = row[column], names.index((row["arm"], row["against"]))
        color, _, marker = line_look(number)
        axes.plot((cell.low, cell.high), (place, place), color=color, linewidth=0.7)
        axes.errorbar(
            cell.mean,
            place,
            xerr=cell.half_width,
            color=color,
            marker=marker,
            markersize=4,
            markerfacecolor="white" if cell.verdict == "undecided" else color,
            elinewidth=1.8,
        )
    labels = [f"{r['cell']}: {r['arm']} − {r['against']} ({r['seeds']})" for r in table.to_dict("records")]
    axes.axvline(0, color="#555555", linewidth=0.8)
    axes.set_yticks(range(len(table)), labels)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=LINEAR)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    axes.grid(axis="y", visible=False)
