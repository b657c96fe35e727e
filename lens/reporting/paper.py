"""Sets our runs of the paper's experiments beside the published numbers, in the layout of the paper's tables.

Source: Feng, Jain, Hartshorn, Duan, Kempe (2025), arXiv 2510.08696v1, tables 1 to 3: MATH, 16 samples a problem,
pass@k in percent. Table 1 is the mean of two runs, tables 2 and 3 are one run each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lens.config.keys import FREE_TO_DIFFER, NOT_COMPARED, ROUNDING, is_listed
from lens.reporting.arms import Arm
from lens.reporting.intervals import Estimate

KS = (1, 2, 4, 8, 16)
LLAMA, QWEN = "Llama-3.1-8B-Instruct", "Qwen-2.5-3B-Base"
MISSING = "missing"
# Keys that a run of a published row may override, besides objective= and paths.
UNCHANGED = ("experiment", "sampler", "hydra", *NOT_COMPARED, *FREE_TO_DIFFER, *ROUNDING)


@dataclass(frozen=True)
class Row:
    """One published row, and the experiment and objective in configs/ that reproduce it."""

    model: str
    algorithm: str
    published: tuple[float, ...]
    experiment: str
    objective: str


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper."""

    name: str
    caption: str
    rows: Sequence[Row]


TABLES = (
    PaperTable(
        "table1",
        "Table 1: MATH, trained on MATH + DAPO (published: mean of two runs)",
        (
            Row(LLAMA, "GRPO", (54.09, 61.09, 67.05, 69.29, 72.70), "paper/table1_llama", "grpo"),
            Row(LLAMA, "LENS", (56.63, 63.05, 68.36, 72.18, 75.34), "paper/table1_llama", "lens"),
            Row(QWEN, "GRPO", (67.06, 72.86, 77.12, 80.83, 82.67), "paper/table1_qwen", "grpo"),
            Row(QWEN, "LENS", (68.59, 74.79, 79.33, 82.62, 84.44), "paper/table1_qwen", "lens"),
        ),
    ),
    PaperTable(
        "table2",
        "Table 2: ablation, Llama, trained on MATH + NuminaMath-1.5 (published: one run)",
        (
            Row(LLAMA, "GRPO", (56.88, 65.42, 72.08, 78.34, 82.80), "paper/table3_llama", "grpo"),
            Row(
                LLAMA,
                "LENS, mixed groups only",
                (57.42, 65.82, 73.08, 78.80, 83.20),
                "paper/table2_ablation",
                "lens_mixed_only",
            ),
            Row(
                LLAMA,
                "LENS, negative groups only",
                (58.14, 66.48, 73.46, 79.79, 83.40),
                "paper/table2_ablation",
                "lens_negative_only",
            ),
            Row(LLAMA, "LENS", (58.64, 66.08, 73.98, 79.46, 83.40), "paper/table3_llama", "lens"),
        ),
    ),
    PaperTable(
        "table3",
        "Table 3: MATH, trained on MATH + NuminaMath-1.5 (published: one run)",
        (
            Row(LLAMA, "GRPO", (56.88, 65.42, 72.08, 78.34, 82.80), "paper/table3_llama", "grpo"),
            Row(LLAMA, "LENS", (58.64, 66.08, 73.98, 79.46, 83.40), "paper/table3_llama", "lens"),
            Row(QWEN, "GRPO", (65.88, 72.39, 77.82, 82.05, 85.13), "paper/table3_qwen", "grpo"),
            Row(QWEN, "LENS", (68.46, 74.74, 79.75, 83.54, 86.28), "paper/table3_qwen", "lens"),
        ),
    ),
)


def compare_with_paper(table: PaperTable, arms: Sequence[Arm]) -> pd.DataFrame:
    """Return each published row of a table with our row below it; numbers that we have no run for are "missing"."""
    rows = []
    for row in table.rows:
        named = {"model": row.model, "algorithm": row.algorithm}
        rows.append(
            named | {"numbers": "published"} | {f"pass@{k}": f"{v:.2f}" for k, v in zip(KS, row.published, strict=True)}
        )
        ours = find_our_numbers(row, arms)
        seeds = next((cell.seeds for cell in ours.values()), 0)
        told = f"ours ({seeds} seed{'s' if seeds > 1 else ''})" if ours else "ours"
        rows.append(named | {"numbers": told} | {f"pass@{k}": ours.get(k, MISSING) for k in KS})
    return pd.DataFrame(rows)


def find_our_numbers(row: Row, arms: Sequence[Arm]) -> dict[int, Estimate]:
    """Return pass@k on MATH's test split of our runs of a published row; empty if there are none.

    Runs do not count if they override anything that decides results, such as the model.
    """
    for arm in arms:
        if arm.experiment == row.experiment and arm.runs[0].objective == row.objective and is_unchanged(arm):
            final = 100 * arm.final()
            columns = {k: f"eval/math/pass@{k}" for k in KS}
            return {k: Estimate.over(final[name]) for k, name in columns.items() if name in final}
    return {}


def is_unchanged(arm: Arm) -> bool:
    """Return whether an arm's runs override nothing but the objective, paths and the keys in UNCHANGED."""
    keys = {override.lstrip("+~").partition("=")[0].replace("/", ".") for run in arm.runs for override in run.overrides}
    return all(key == "objective" or key.endswith("path") or is_listed(key, UNCHANGED) for key in keys)


def has_runs(arms: Sequence[Arm]) -> bool:
    """Return whether we have runs of any published row."""
    return any(find_our_numbers(row, arms) for table in TABLES for row in table.rows)
