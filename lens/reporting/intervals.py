"""Computes means over seeds with an interval, and paired differences with two intervals.

The table of scripts/evaluate.py, about a single model, has the only other interval: `bootstrap_over_problems` in
lens/evaluation/scores.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
CHUNK = 200  # resamples at a time, which bounds the memory for the counts of 5,000 problems


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % t interval.

    Attributes:
        mean: in percent or points.
        half_width: half the width of the interval; nan below three seeds.
        seeds: how many seeds the mean is over.
    """

    mean: float
    half_width: float
    seeds: int

    @classmethod
    def over(cls, values: Sequence[float]) -> Estimate:
        """Estimate from one value per seed; two seeds give no interval, as t with one degree of freedom is too wide."""
        values = np.asarray(values, dtype=float)
        n = len(values)
        if n < 3:
            return cls(float(values.mean()), math.nan, n)
        half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
        return cls(float(values.mean()), float(half), n)

    @property
    def decided(self) -> bool:
        """Return whether the interval leaves out zero; False without an interval."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "missing"
        digits = 1 if abs(self.mean) >= 1 or self.mean == 0 or abs(self.mean) < self.half_width else 2
        if math.isnan(self.half_width):
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.half_width:.{digits}f}"


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference in points with two intervals.

    The t interval holds for new seeds on the same problems; [low, high] holds for new seeds and new problems.

    Attributes:
        low, high: ends of the 95 % bootstrap interval over seeds and problems; nan below three seeds.
        values: the difference of each seed.
    """

    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def paired(cls, differences: np.ndarray) -> Difference:
        """Estimate from differences in points [seeds, problems]: a row per seed, the same problems in every row."""
        values = differences.mean(axis=1)
        estimate = Estimate.over(values)
        low, high = bootstrap(differences) if len(values) >= 3 else (math.nan, math.nan)
        return cls(estimate.mean, estimate.half_width, estimate.seeds, low, high, tuple(map(float, values)))

    @property
    def verdict(self) -> str:
        """Return "higher" or "lower" if both intervals leave out zero, else "undecided"."""
        if not self.decided or self.low <= 0 <= self.high:
            return "undecided"
        return "higher" if self.mean > 0 else "lower"

    @property
    def lines(self) -> list[str]:
        """Return the lines to print: the mean with its t interval, the bootstrap interval, and the verdict.

        Below three seeds there are two: the mean, and the value of each seed.
        """
        if math.isnan(self.half_width):
            return [
                f"{self.mean:+.1f}",
                f"({'; '.join(f'{v:+.1f}' for v in self.values) if self.seeds > 1 else 'one seed'})",
            ]
        return [f"{self.mean:+.1f} ± {self.half_width:.1f}", f"[{self.low:+.1f}, {self.high:+.1f}]", self.verdict]

    @property
    def sentence(self) -> str:
        """Return in words how large the difference in pass@1 is, and whether that many seeds decide it."""
        seeds = f"{self.seeds} paired seed{'s' if self.seeds > 1 else ''}"
        points = f"{self.mean:+.1f} points of pass@1"
        if math.isnan(self.half_width):
            return f"{points}: not decided, as {seeds} give{'s' if self.seeds == 1 else ''} no interval"
        over_seeds = f"{self.mean - self.half_width:+.1f}, {self.mean + self.half_width:+.1f}"
        both = f"95 % intervals [{over_seeds}] over seeds, [{self.low:+.1f}, {self.high:+.1f}] over seeds and problems"
        word = "not decided" if self.verdict == "undecided" else f"{self.verdict}, decided"
        return f"{points}, {both}: {word} on {seeds}"

    def __str__(self) -> str:
        return " ".join(self.lines)


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of values [seeds, problems], by resampling both.

    Each resample draws seeds with replacement and problems with replacement. All seeds met the same problems, so one
    draw of problems serves all seeds of a resample. A new draw for each seed would average away the differences between
    problems. Source: Owen (2007), "The pigeonhole bootstrap".
    """
    seeds, problems = values.shape
    rng = np.random.default_rng(0)  # a fixed seed, so that a report is the same each time
    means = []
    for _ in range(RESAMPLES // CHUNK):
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=CHUNK)  # [chunk, seeds], times drawn
        of_problems = rng.multinomial(problems, np.full(problems, 1 / problems), size=CHUNK)  # [chunk, problems]
        means.append(((of_seeds @ values) * of_problems).sum(axis=1) / (seeds * problems))
    low, high = np.percentile(np.concatenate(means), [50 - 50 * CONFIDENCE, 50 + 50 * CONFIDENCE])
    return float(low), float(high)
