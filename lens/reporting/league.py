"""Ranks the arms of one setting against a baseline: at equal steps, tokens and time, corrected for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from lens.reporting.arms import Arm
from lens.reporting.curves import accumulate, at_evaluations
from lens.reporting.figures import COLUMN_WIDTH, STYLE, finish_figure, plt
from lens.reporting.intervals import CONFIDENCE, Difference, Estimate
from lens.reporting.pairing import find_baseline, pair_runs
from lens.reporting.tables import find_ks, find_parts, signal_table
from lens.runs.run import Run

SMALLEST = 4  # arms beside the baseline from which a setting is a league
HARD = "Levels 4-5"
POWER = 0.8  # how often a true difference is to be decided
ROW_HEIGHT = 0.2  # inches
# What can be held equal instead of steps.
SPENT: dict[str, Callable[[Run], pd.Series]] = {
    "tokens": lambda run: accumulate(run, "total/tokens_generated"),
    "time": lambda run: at_evaluations(run, run.metrics["time/step_s"].dropna().cumsum()),
}


def league_table(arms: Sequence[Arm], baseline: str | None, differences: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each arm that has a baseline, the highest pass@1 first; ``differences`` is the difference table.

    Its columns are paired differences in points: of pass@k for the smallest and the largest k at equal steps, over all
    problems of the first evaluation set and over its Levels 4-5; the p-value of each of the first two (paired t test)
    after Holm's correction over all arms and both k; and of the smallest k at equal tokens and at equal time. Then come
    how many seeds decide a difference of one point in the smallest k, and the arm's own entropy, share of |A| in
    negative groups in %, and seconds a step.

    There are no rows if fewer than SMALLEST arms can be compared.
    """
    whole, prefix = next(iter(find_parts(arms[0]).items()))
    ks = find_ks(arms[0], prefix)
    columns = [f"pass@{k}" for k in dict.fromkeys((ks[0], ks[-1]))]
    if differences.empty or (differences["part"] == whole).sum() < SMALLEST:
        return pd.DataFrame()
    by_part = {part: rows.set_index("arm") for part, rows in differences.groupby("part")}
    signal = signal_table(arms).set_index("arm")
    rows, hard = [], by_part.get(whole.replace("all", HARD))
    for arm in (arm for arm in arms if arm.label in by_part[whole].index):
        pairs = pair_runs(arm, find_baseline(arm, arms, baseline))
        found = by_part[whole].loc[arm.label]
        rows.append(
            {"arm": arm.label, "seeds": found["seeds"]}
            | {name: found[name] for name in columns}
            | {f"{name} p": p_value(found[name].values) for name in columns}
            | ({f"{HARD}, {name}": hard.loc[arm.label, name] for name in columns} if hard is not None else {})
            | {f"at equal {what}": compare_at_equal(pairs, f"{prefix}/{columns[0]}", what) for what in SPENT}
            | {"seeds for 1 point": count_seeds(found[columns[0]].values)}
            | {name: signal.loc[arm.label, name] for name in ("entropy", "share of |A|", "s/step")}
        )
    table = pd.DataFrame(rows)
    names = [f"{name} p" for name in columns]
    corrected = [float(f"{p:.2g}") for p in correct_by_holm(table[names].to_numpy().flatten())]
    table[names] = np.reshape(corrected, (len(table), len(names)))
    order = table[columns[0]].map(lambda difference: -difference.mean).argsort(kind="stable")
    return table.iloc[order].reset_index(drop=True)


def p_value(values: Sequence[float]) -> float:
    """Return the two-sided p-value of a paired t test; 1 below three seeds, or where all seeds are equal."""
    if len(values) < 3 or np.ptp(values) == 0:
        return 1.0
    return float(stats.ttest_1samp(values, 0).pvalue)


def count_seeds(values: Sequence[float]) -> int | str:
    """Return how many paired seeds decide a true difference of one point four times in five, by the spread seen."""
    if len(values) < 3:
        return "-"
    quantiles = stats.norm.ppf([0.5 + CONFIDENCE / 2, POWER])
    return max(3, math.ceil((quantiles.sum() * np.std(values, ddof=1)) ** 2))


def correct_by_holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, so that all of them are right together (Holm, 1979)."""
    p = np.asarray(p_values, dtype=float)
    order = p.argsort(kind="stable")
    scaled = np.minimum(1, p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(scaled)
    return corrected.tolist()


def compare_at_equal(pairs: Sequence[tuple[Run, Run]], metric: str, what: str) -> Estimate | str:
    """Return the difference in points after both runs of a pair have spent what the cheaper one spends in all.

    Between evaluations, accuracy is interpolated. Without evaluations during training there is nothing to interpolate.
    """
    if any(len(run.evaluations) < 3 for pair in pairs for run in pair):
        return "-"
    differences = []
    for pair in pairs:
        spent = [SPENT[what](run).to_numpy(dtype=float) for run in pair]
        budget = min(series[-1] for series in spent)
        ours, base = (
            np.interp(budget, series, 100 * run.evaluations[metric].to_numpy(dtype=float))
            for series, run in zip(spent, pair, strict=True)
        )
        differences.append(ours - base)
    return Estimate.over(differences)


def league_sentence(table: pd.DataFrame, baseline: str) -> str:
    """Say which arm won, by how much, and how surely."""
    column = next(name for name in table.columns if name.startswith("pass@"))
    corrections = len(table) * sum(name.endswith(" p") for name in table.columns)
    first = table.iloc[0]
    difference: Difference = first[column]
    p = first[f"{column} p"]
    told = f"{first['arm']}, {difference.mean:+.1f}"
    if not math.isnan(difference.half_width):
        told += f" ± {difference.half_width:.1f}"
    sure = f"p = {p:.2g} after Holm's correction for {corrections} comparisons"
    told += f" points above {baseline} in {column} at equal steps on {difference.seeds} paired seeds ({sure})"
    if difference.mean > 0 and p < 1 - CONFIDENCE:
        return f"Of {len(table)} arms, {told} is the best."
    return f"None of {len(table)} arms is surely better than {baseline}; the highest is {told}."


def draw_league(table: pd.DataFrame, path: Path) -> Path:
    """Draw the differences of a league with their t intervals, and save it as PNG and PDF; return the PNG's path.

    A filled point is decided after Holm's correction.
    """
    columns = [name for name in table.columns if name.startswith("pass@") and not name.endswith(" p")]
    with plt.rc_context(STYLE):
        size = (2 * COLUMN_WIDTH, ROW_HEIGHT * len(table) + 0.8)
        figure, panels = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False, layout="constrained")
        places = np.arange(len(table))[::-1]
        for axes, column in zip(panels.flat, columns, strict=True):
            for place, (_, row) in zip(places, table.iterrows(), strict=True):
                difference, decided = row[column], row[f"{column} p"] < 1 - CONFIDENCE
                look = {"color": "#000000", "marker": "o", "markersize": 4, "linewidth": 1}
                half = np.nan_to_num(difference.half_width)
                face = "#000000" if decided else "white"
                axes.errorbar(difference.mean, place, xerr=half, markerfacecolor=face, **look)
            axes.axvline(0, color="#999999", linewidth=0.8)
            axes.set(title=column, yticks=places, yticklabels=table["arm"])
        label = "points above the baseline at equal steps (filled: decided after Holm's correction)"
        return finish_figure(figure, list(panels.flat), label, path)
