"""Computes the scores of an evaluation: pass@k overall, by level and by subject, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from lens.grading.judge import UNJUDGED

HARD_LEVELS = (4, 5)
COUNTED = ("no_answer", *UNJUDGED)  # verdicts without a comparison; wrong in pass@k
BOOTSTRAP_SAMPLES = 1000


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return 1 - C(n - c, k) / C(n, k), the unbiased estimate of the chance that at least one of k answers is right.

    Source: Chen et al. (2021), "Evaluating Large Language Models Trained on Code", eq. 1.

    Args:
        num_samples: n, the number of sampled answers.
        num_correct: c, how many of them are right.
        k: between 1 and n.

    Raises:
        ValueError: k or c is out of range.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k}: between 1 and num_samples={num_samples}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct={num_correct}: between 0 and num_samples={num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def ks_up_to(num_samples: int) -> list[int]:
    """Return 1, 2, 4, 8, ... up to the number of samples."""
    return [2**power for power in range(num_samples.bit_length()) if 2**power <= num_samples]


def count_per_problem(answers: pd.DataFrame) -> pd.DataFrame:
    """Count the graded answers to each problem.

    Args:
        answers: a row per answer, as `make_frame` in lens/evaluation/evaluator.py makes it.

    Returns:
        A row per problem, in the same order, with set, id, level, subject and counts. ``n`` counts all its answers,
        ``correct`` the correct ones, and ``truncated`` those that the token limit cut (they are graded all the same).
        ``no_answer``, ``timeout``, ``error`` and ``bad_gold`` count verdicts that are wrong in pass@k.
    """
    counted = {name: answers["verdict"] == name for name in ("correct", *COUNTED)}
    counted["truncated"] = answers["finish_reason"] == "length"
    groups = answers.assign(**counted).groupby(["set", "id"], sort=False, as_index=False)
    sums = {name: (name, "sum") for name in ("correct", "truncated", *COUNTED)}
    return groups.agg(level=("level", "first"), subject=("subject", "first"), n=("sample", "size"), **sums)


def iterate_slices(per_problem: pd.DataFrame, by_level: bool = True) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the names and problems of the reported parts: all (named ""), each level, Levels 4-5, each subject."""
    yield "", per_problem
    if by_level:
        for level in sorted(per_problem["level"].dropna().unique()):
            yield f"level_{level}", per_problem[per_problem["level"] == level]
        hard = per_problem[per_problem["level"].isin(HARD_LEVELS)]
        if len(hard):
            yield "levels_{}-{}".format(*HARD_LEVELS), hard
    for subject in sorted(per_problem["subject"].dropna().unique()):
        yield f"subject_{subject}", per_problem[per_problem["subject"] == subject]


def pass_at_ks(per_problem: pd.DataFrame) -> pd.DataFrame:
    """Return pass@k of every problem: a row per problem, a column per k in 1, 2, 4, ... up to the smallest n."""
    table = {}
    for k in ks_up_to(int(per_problem["n"].min())):
        pairs = zip(per_problem["n"], per_problem["correct"], strict=True)
        table[k] = [pass_at_k(int(n), int(c), k) for n, c in pairs]
    return pd.DataFrame(table, index=per_problem.index)


def compute_metrics(per_problem: pd.DataFrame, *, by_level: bool = True) -> dict[str, float]:
    """Return eval/<set>/pass@k, eval/<set>/level_<n>/pass@k and so on: means over problems, in [0, 1].

    Also returns eval/<set>/truncated_rate, no_answer_rate, timeout_rate, error_rate and bad_gold_rate, and the sum of
    the last three, unjudged_rate: shares of the answers.
    """
    metrics = {}
    for name, of_set in per_problem.groupby("set", sort=False):
        values = pass_at_ks(of_set)
        for part, members in iterate_slices(of_set, by_level):
            prefix = "/".join(filter(None, ["eval", str(name), part]))
            for k, mean in values.loc[members.index].mean().items():
                metrics[f"{prefix}/pass@{k}"] = float(mean)
        answers = int(of_set["n"].sum())
        for count in ("truncated", *COUNTED):
            metrics[f"eval/{name}/{count}_rate"] = int(of_set[count].sum()) / answers
        metrics[f"eval/{name}/unjudged_rate"] = int(of_set[list(UNJUDGED)].sum().sum()) / answers
    return metrics


def bootstrap_over_problems(values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95 % percentile interval of the mean of values [problems, ks], by resampling problems.

    The interval speaks for other problems and the same model. lens/reporting/intervals.py has intervals over seeds.
    """
    picks = rng.integers(len(values), size=(BOOTSTRAP_SAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5], axis=0)
    return low, high


def make_table(per_problem: pd.DataFrame, *, by_level: bool = True, seed: int = 0) -> pd.DataFrame:
    """Make the printed table of an evaluation: a row per set and part, with pass@k in percent and 95 % intervals.

    The intervals are those of `bootstrap_over_problems`, drawn with ``seed``. Other columns give the number of
    problems, of samples per problem, and of answers that were truncated, held no answer or could not be judged.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for name, of_set in per_problem.groupby("set", sort=False):
        values = pass_at_ks(of_set)
        for part, members in iterate_slices(of_set, by_level):
            chosen = 100 * values.loc[members.index].to_numpy()  # [problems, ks]
            low, high = bootstrap_over_problems(chosen, rng)
            row = {"set": name, "part": part or "all", "problems": len(members), "samples": int(members["n"].iloc[0])}
            for column, k in enumerate(values.columns):
                mean = chosen[:, column].mean()
                row[f"pass@{k}"] = f"{mean:.1f} [{low[column]:.1f}, {high[column]:.1f}]"
            row["truncated"] = int(members["truncated"].sum())
            row["no answer"] = int(members["no_answer"].sum())
            row["unjudged"] = int(members[list(UNJUDGED)].sum().sum())
            rows.append(row)
    return pd.DataFrame(rows)
