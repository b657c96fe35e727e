"""Values of several seeds -> a mean with its interval, and paired differences with two intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
CHUNK = 200  # resamples at a time, so that the counts of 5,000 problems stay small


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, in percent or points, with the half-width of its 95 % t interval (nan below three seeds)."""

    mean: float
    half_width: float
    seeds: int

    @classmethod
    def over(cls, values: Sequence[float]) -> Estimate:
        """From one value a seed; two seeds give no interval (t with one degree of freedom says nothing)."""
        values = np.asarray(values, dtype=float)
        n = len(values)
        if n < 3:
            return cls(float(values.mean()), math.nan, n)
        half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
        return cls(float(values.mean()), float(half), n)

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out zero; False without an interval."""
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
    """A paired difference in points: the t interval speaks for other seeds, [low, high] for other problems too.

    Attributes:
        low, high: ends of the 95 % bootstrap interval over seeds and problems; nan below three seeds.
        values: the difference of each seed.
    """

    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def paired(cls, differences: np.ndarray) -> Difference:
        """From differences in points [seeds, problems]: one seed a row, the same problems in every row."""
        values = differences.mean(axis=1)
        estimate = Estimate.over(values)
        low, high = bootstrap(differences) if len(values) >= 3 else (math.nan, math.nan)
        return cls(estimate.mean, estimate.half_width, estimate.seeds, low, high, tuple(map(float, values)))

    @property
    def verdict(self) -> str:
        """higher or lower where both intervals leave out zero; else undecided."""
        if not self.decided or self.low <= 0 <= self.high:
            return "undecided"
        return "higher" if self.mean > 0 else "lower"

    @property
    def lines(self) -> list[str]:
        """What is said of it, a line each: the mean with its t interval, the bootstrap interval, the verdict.

        Below three seeds: the mean and the values that it is the mean of.
        """
        if math.isnan(self.half_width):
            return [
                f"{self.mean:+.1f}",
                f"({'; '.join(f'{v:+.1f}' for v in self.values) if self.seeds > 1 else 'one seed'})",
            ]
        return [f"{self.mean:+.1f} ± {self.half_width:.1f}", f"[{self.low:+.1f}, {self.high:+.1f}]", self.verdict]

    def __str__(self) -> str:
        return " ".join(self.lines)


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of values [seeds, problems], both of which are resampled.

    Seeds are drawn with replacement, and for the drawn seeds problems are drawn with replacement. All seeds met the
    same problems, so one draw of problems serves all of a resample's seeds: drawing anew inside each seed would
    average away what is particular to the problems. Source: Owen (2007), "The pigeonhole bootstrap".
    """
    seeds, problems = values.shape
    rng = np.random.default_rng(0)  # a report says the same each time
    means = []
    for _ in range(RESAMPLES // CHUNK):
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=CHUNK)  # [chunk, seeds], times drawn
        of_problems = rng.multinomial(problems, np.full(problems, 1 / problems), size=CHUNK)  # [chunk, problems]
        means.append(((of_seeds @ values) * of_problems).sum(axis=1) / (seeds * problems))
    low, high = np.percentile(np.concatenate(means), [50 - 50 * CONFIDENCE, 50 + 50 * CONFIDENCE])
    return float(low), float(high)
