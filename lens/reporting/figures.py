"""Draws the figures of one setting, readable at the width of a column and in greyscale."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from lens.reporting.arms import Arm
from lens.reporting.curves import SMOOTHING_STEPS, Curve, accumulate, at_evaluations, over_seeds, smooth
from lens.reporting.tables import find_ks, find_parts
from lens.runs.run import Run

logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of PDFs without a date

COLUMN_WIDTH = 3.4  # inches, of a two-column paper
COLORS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7f7f7f")
DASHES = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 3)),
    (0, (2, 2)),
    "-.",
)
MARKERS = "osD^vP*X"
STYLE = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "figure.dpi": 200,
    "pdf.fonttype": 42,
}
BINS = np.linspace(0, 1, 26)  # of confidence
LEGEND_CHARACTERS = 60  # characters of a legend that fit into a column's width
LEGEND_LINE = 0.135  # inches
MILLION = 1e6


def draw_figures(arms: Sequence[Arm], folder: Path) -> dict[str, Path]:
    """Draw every figure that the runs have values for; return title -> PNG (a PDF lies beside each PNG)."""
    parts = {title: p for title, p in find_parts(arms[0]).items() if title.endswith(("all", "Levels 4-5"))}
    whole = next(iter(parts.values()))
    drawn = {
        "Accuracy over steps": accuracy_figure(arms, parts, folder / "accuracy_over_steps"),
        "Negative groups over steps": negative_groups_figure(arms, folder / "negative_groups_over_steps"),
        "Negative groups by level": negative_levels_figure(arms, folder / "negative_groups_by_level"),
        "pass@k after training": pass_at_k_figure(arms, parts, folder / "pass_at_k"),
        "Share of the signal from negative groups": signal_figure(arms, folder / "signal_of_negative_groups"),
        "Confidence of correct and wrong answers": confidence_figure(arms, folder / "confidence"),
        "Accuracy over compute": compute_figure(arms, whole, folder / "accuracy_over_compute"),
    }
    return {title: path for title, path in drawn.items() if path is not None}


# --- figures ---------------------------------------------------------------------------------------------------------


def accuracy_figure(arms: Sequence[Arm], parts: dict[str, str], path: Path) -> Path:
    """Draw pass@1 over steps, a panel for each part (title -> metric prefix), as the paper's figures 5 and 6."""
    with plt.rc_context(STYLE):
        figure, panels = make_panels(len(parts))
        for axes, (title, prefix) in zip(panels, parts.items(), strict=True):
            curves = [over_seeds([100 * run.evaluations[f"{prefix}/pass@1"] for run in arm.runs]) for arm in arms]
            draw_arms(axes, arms, curves, marked=True)
            axes.set(title=title, ylabel="pass@1 (%)")
        return finish_figure(figure, panels, "step (optimizer updates)", path)


def negative_groups_figure(arms: Sequence[Arm], path: Path) -> Path:
    """Draw the share of negative groups over steps, as the paper's figure 2; a moving average over SMOOTHING_STEPS."""
    with plt.rc_context(STYLE):
        figure, panels = make_panels(1)
        draw_arms(panels[0], arms, [over_seeds([smooth(r, "groups/frac_negative") for r in a.runs]) for a in arms])
        panels[0].set(ylabel="negative groups (%)", ylim=(0, None))
        return finish_figure(figure, panels, "step (optimizer updates)", path)


def negative_levels_figure(arms: Sequence[Arm], path: Path) -> Path | None:
    """Draw the share of negative groups over steps for each level; None if the problems have no levels."""
    metrics = sorted({n for a in arms for n in a.runs[0].metrics if n.startswith("groups/frac_negative/level_")})
    if not metrics:
        return None
    with plt.rc_context(STYLE):
        figure, panels = make_panels(len(metrics), columns=2, height=1.25)
        for axes, metric in zip(panels, metrics, strict=True):
            draw_arms(axes, arms, [over_seeds([smooth(r, metric, filled=True) for r in a.runs]) for a in arms])
            axes.set(title=f"Level {metric.rsplit('_', 1)[1]}", ylim=(-3, 103), yticks=(0, 50, 100))
        figure.supylabel("negative groups (%)", fontsize=8)
        return finish_figure(figure, panels, "step (optimizer updates)", path)


def pass_at_k_figure(arms: Sequence[Arm], parts: dict[str, str], path: Path) -> Path:
    """Draw pass@k over k, after training and before it."""
    with plt.rc_context(STYLE):
        figure, panels = make_panels(len(parts))
        for axes, (title, prefix) in zip(panels, parts.items(), strict=True):
            ks = find_ks(arms[0], prefix)
            columns = [f"{prefix}/pass@{k}" for k in ks]
            curves = [
                over_seeds([pd.Series(100 * run.evaluations.iloc[-1][columns].to_numpy(float), ks) for run in arm.runs])
                for arm in arms
            ]
            draw_arms(axes, arms, curves, marked=True)
            before = 100 * np.mean([run.evaluations.iloc[0][columns].to_numpy(float) for run in arms[0].runs], axis=0)
            axes.plot(ks, before, color="#999999", linewidth=1, marker="_", label="before training")
            axes.set(title=title, ylabel="pass@k (%)")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(ks))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_locator(NullLocator())
        return finish_figure(figure, panels, "k (answers drawn)", path)


def signal_figure(arms: Sequence[Arm], path: Path) -> Path:
    """Draw the share of negative groups in the sum of |advantage| and, if it was measured, in the gradient's norm."""
    measured = {
        "of the sum of |advantage|": "groups/advantage_share_negative",
        "of the gradient's norm": "groups/grad_norm_share_negative",
    }
    shown = {t: name for t, name in measured.items() if all(name in r.metrics for a in arms for r in a.runs)}
    with plt.rc_context(STYLE):
        figure, panels = make_panels(len(shown))
        for axes, (title, name) in zip(panels, shown.items(), strict=True):
            sparse = name.endswith("norm_share_negative")
            curves = [
                over_seeds([smooth(r, name, steps=1 if sparse else SMOOTHING_STEPS) for r in a.runs]) for a in arms
            ]
            draw_arms(axes, arms, curves, marked=sparse)
            axes.set(title=f"Negative groups' share {title}", ylabel="share (%)", ylim=(0, None))
        return finish_figure(figure, panels, "step (optimizer updates)", path)


def confidence_figure(arms: Sequence[Arm], path: Path) -> Path | None:
    """Draw histograms of the confidence of correct and of wrong answers in the last evaluation, a panel per arm."""
    answers = {arm.label: pd.concat([run.answers() for run in arm.runs]) for arm in arms}
    answers = {label: of_arm for label, of_arm in answers.items() if len(of_arm)}
    if not answers:
        return None
    with plt.rc_context(STYLE):
        columns = 1 if len(answers) <= 3 else 2
        figure, panels = make_panels(len(answers), columns=columns, height=1.35)
        for axes, (label, of_arm) in zip(panels, answers.items(), strict=True):
            right = of_arm["verdict"] == "correct"
            weight = 100 / len(of_arm)
            for name, members, look in (
                ("correct", right, {"histtype": "stepfilled", "facecolor": "#b8d4e8", "edgecolor": "#0072b2"}),
                ("wrong", ~right, {"histtype": "step", "edgecolor": "#000000", "hatch": "/////", "linewidth": 1.1}),
            ):
                values = of_arm["confidence"][members]
                axes.hist(values, BINS, weights=np.full(len(values), weight), label=name, **look)
            axes.set(title=textwrap.fill(label, 44 // columns))
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        figure.supylabel("answers (%, log scale)", fontsize=8)
        return finish_figure(figure, panels, "confidence (geometric-mean token probability)", path)


def compute_figure(arms: Sequence[Arm], prefix: str, path: Path) -> Path:
    """Draw pass@1 over steps, tokens generated, tokens trained on, and seconds of training."""
    axes_of: dict[str, Callable[[Run], pd.Series]] = {
        "steps": lambda run: pd.Series(run.evaluations.index, run.evaluations.index),
        "tokens generated (millions)": lambda run: accumulate(run, "total/tokens_generated") / MILLION,
        "tokens trained on (millions)": lambda run: accumulate(run, "total/tokens_trained") / MILLION,
        "time in steps (s)": lambda run: at_evaluations(run, run.metrics["time/step_s"].dropna().cumsum()),
    }
    with plt.rc_context(STYLE):
        figure, panels = make_panels(len(axes_of), columns=2, height=1.6, sharex=False)
        for axes, (label, compute) in zip(panels, axes_of.items(), strict=True):
            curves = []
            for arm in arms:
                steps, mean, half = over_seeds([100 * run.evaluations[f"{prefix}/pass@1"] for run in arm.runs])
                spent = pd.concat([compute(run) for run in arm.runs], axis=1).mean(axis=1)
                curves.append((spent[steps].to_numpy(), mean, half))
            draw_arms(axes, arms, curves, marked=True)
            axes.set_xlabel(label, fontsize=7)
        figure.supylabel("pass@1 (%)", fontsize=8)
        return finish_figure(figure, panels, None, path)


# --- panels ----------------------------------------------------------------------------------------------------------


def make_panels(
    number: int, *, columns: int = 1, height: float = 1.9, sharex: bool = True
) -> tuple[plt.Figure, list[plt.Axes]]:
    """Make panels, row by row; together they are as wide as a column of a paper."""
    rows = -(-number // columns)
    size = (COLUMN_WIDTH, height * rows + 0.5)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, squeeze=False, sharex=sharex, sharey=columns > 1, layout="constrained"
    )
    panels = list(grid.flat)
    for unused in panels[number:]:
        unused.remove()
    if sharex:
        for above, unused in zip(panels[number - columns : number], panels[number:], strict=False):
            above.tick_params(labelbottom=bool(unused))
    return figure, panels[:number]


def line_look(number: int) -> tuple[str, Any, str]:
    """Return color, dashes and marker of a line; after eight lines, colors repeat with other dashes and markers."""
    shifted = number + number // len(COLORS)
    return COLORS[number % len(COLORS)], DASHES[shifted % len(DASHES)], MARKERS[shifted % len(MARKERS)]


def draw_arms(axes: plt.Axes, arms: Sequence[Arm], curves: Sequence[Curve], *, marked: bool = False) -> None:
    """Draw a line and a 95 % band for each arm."""
    for number, (arm, (x, mean, half)) in enumerate(zip(arms, curves, strict=True)):
        color, dashes, marker = line_look(number)
        axes.plot(
            x,
            mean,
            color=color,
            linestyle=dashes,
            marker=marker if marked else None,
            markersize=3.2,
            markerfacecolor="white" if number % 2 else color,
            linewidth=1.2,
            label=f"{arm.label} ({len(arm.runs)} seeds)" if len(arm.runs) > 1 else f"{arm.label} (1 seed)",
        )
        axes.fill_between(x, mean - half, mean + half, color=color, alpha=0.12, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def finish_figure(figure: plt.Figure, panels: Sequence[plt.Axes], xlabel: str | None, path: Path) -> Path:
    """Add the x label and, if lines have labels, a legend above; save the figure and return the PNG's path."""
    if xlabel:
        figure.supxlabel(xlabel, fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    if labels:
        columns = max(1, min(3, LEGEND_CHARACTERS // (max(map(len, labels)) + 4)))
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + LEGEND_LINE * (-(-len(labels) // columns) - 1))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)
    return save_figure(figure, path)


def save_figure(figure: plt.Figure, path: Path) -> Path:
    """Save the figure as PNG and PDF; return the PNG's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    png = path.with_suffix(".png")
    figure.savefig(png)
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    plt.close(figure)
    return png
