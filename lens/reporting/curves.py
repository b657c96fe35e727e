"""Turns runs of one arm into curves over steps: means with intervals, moving averages, running totals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lens.reporting.intervals import Estimate
from lens.runs.run import Run

SMOOTHING_STEPS = 5

# The average of several runs over a shared axis: x, mean and 95 % half-width.
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]


def over_seeds(series: Sequence[pd.Series]) -> Curve:
    """Average one metric over seeds: return the steps that all runs have, the means, and the 95 % half-widths."""
    table = pd.concat(series, axis=1, join="inner").dropna()
    estimates = [Estimate.over(row) for row in table.to_numpy()]
    half = np.nan_to_num([e.half_width for e in estimates])
    return table.index.to_numpy(), np.array([e.mean for e in estimates]), half


def smooth(run: Run, metric: str, *, steps: int = SMOOTHING_STEPS, filled: bool = False) -> pd.Series:
    """Return a metric in percent, as a moving average over ``steps``.

    With ``filled``, a step without a value gets the average of the steps before it.
    """
    known = run.metrics["groups/frac_negative"].dropna().index
    if metric not in run.metrics:
        return pd.Series(np.nan, known)
    values = 100 * run.metrics[metric].dropna()
    if filled:
        values = values.reindex(known)
    return values.rolling(steps, min_periods=1).mean().ffill() if filled else values.rolling(steps, 1).mean()


def accumulate(run: Run, total: str) -> pd.Series:
    """Return a running total at each evaluation; it is 0 before the first step."""
    return at_evaluations(run, run.metrics[total].dropna())


def at_evaluations(run: Run, values: pd.Series) -> pd.Series:
    """Return the values at the steps that have an evaluation; 0 where there is no value."""
    steps = run.evaluations.index
    return values[~values.index.duplicated(keep="last")].reindex(steps).fillna(0.0)
