"""Makes the tables of one setting: pass@k by level, paired differences to a baseline, and sources of the signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from lens.evaluation.scores import iterate_slices
from lens.reporting.arms import Arm
from lens.reporting.intervals import Difference, Estimate
from lens.reporting.pairing import find_baseline, pair_runs
from lens.runs.run import Run

EDGE_STEPS = 10


def find_parts(arm: Arm) -> dict[str, str]:
    """Return the parts of every evaluation set to report: title of the part -> prefix of its metrics."""
    names = [name.removeprefix("eval/") for name in arm.runs[0].evaluations.columns if name.endswith("/pass@1")]
    parts = [name.rsplit("/", 1)[0] for name in names if "/subject_" not in name]
    several = len({part.split("/")[0] for part in parts}) > 1

    def title(part: str) -> str:
        name, _, level = part.partition("/")
        words = {"": "all"}.get(level, level.replace("levels_", "Levels ").replace("level_", "Level "))
        return f"{name}: {words}" if several else words

    return {title(part): f"eval/{part}" for part in dict.fromkeys(parts)}


def find_members(run: Run) -> dict[str, pd.Index]:
    """Return the rows of a run's `problems` that belong to each part, by the prefix of its metrics."""
    return {
        "/".join(filter(None, ["eval", str(name), part])): rows.index
        for name, of_set in run.problems.groupby("set", sort=False)
        for part, rows in iterate_slices(of_set)
    }


def find_ks(arm: Arm, prefix: str) -> list[int]:
    """Return the k of all measured pass@k, ascending."""
    columns = arm.runs[0].evaluations.columns
    return sorted(int(name.rsplit("@", 1)[1]) for name in columns if name.startswith(f"{prefix}/pass@"))


def accuracy_table(arms: Sequence[Arm]) -> pd.DataFrame:
    """Make the table of pass@k in percent: a row per part and arm, a column per k. Entries are `Estimate`s over seeds.

    The first row of each part is the model before training, over the seeds of the first arm.
    """
    before = pd.DataFrame({run.seed: run.evaluations.iloc[0] for run in arms[0].runs}).T
    finals = {"before training": before} | {arm.label: arm.final() for arm in arms}
    rows = []
    for part, prefix in find_parts(arms[0]).items():
        for label, final in finals.items():
            cells = {f"pass@{k}": Estimate.over(100 * final[f"{prefix}/pass@{k}"]) for k in find_ks(arms[0], prefix)}
            rows.append({"part": part, "arm": label, "seeds": len(final), **cells})
    return pd.DataFrame(rows)


def results_table(settings: Sequence[Sequence[Arm]]) -> pd.DataFrame:
    """Make the table of the last evaluations of all settings: a row per model, data and algorithm, as in the paper."""
    rows = []
    for arms in settings:
        choices = arms[0].runs[0].choices
        asked = {"model": str(choices.get("model")), "data": str(choices.get("dataset"))}
        for part, prefix in find_parts(arms[0]).items():
            if part.rsplit(": ")[-1] != "all":
                continue
            for arm in arms:
                final = 100 * arm.final()
                cells = {f"pass@{k}": Estimate.over(final[f"{prefix}/pass@{k}"]) for k in find_ks(arms[0], prefix)}
                named = {"algorithm": arm.label, "evaluated on": prefix.removeprefix("eval/"), "seeds": len(arm.runs)}
                rows.append(asked | named | cells)
    return pd.DataFrame(rows).astype(object).fillna("-")


def difference_table(arms: Sequence[Arm], baseline: str | None) -> pd.DataFrame:
    """Make the table of points above the baseline, paired by seed and problem.

    It has a row per part and arm; entries are `Difference`s. Arms without a baseline or a shared seed have no row. The
    last columns count problems: those solved by at least one answer of the arm and none of the baseline's, the reverse
    (both are means over seeds), and all problems of the part.
    """
    members = find_members(arms[0].runs[0])
    pairs = [(arm, pair_runs(arm, base)) for arm in arms if (base := find_baseline(arm, arms, baseline))]
    above = {arm.label: [ours.pass_at_ks - base.pass_at_ks for ours, base in runs] for arm, runs in pairs}
    rows = []
    for part, prefix in find_parts(arms[0]).items():
        index = members[prefix]
        for arm, runs in pairs:
            if not runs:
                continue
            cells = {
                f"pass@{k}": Difference.paired(np.stack([points[k].to_numpy()[index] for points in above[arm.label]]))
                for k in find_ks(arm, prefix)
            }
            solved = [[run.solved[index] for run in pair] for pair in runs]
            alone = [
                Estimate.over([(a & ~b).sum() for a, b in solved]),
                Estimate.over([(b & ~a).sum() for a, b in solved]),
            ]
            counts = dict(zip(("solved by it alone", f"by {baseline} alone"), alone, strict=True))
            rows.append({"part": part, "arm": arm.label, "seeds": len(runs), **cells, **counts, "problems": len(index)})
    return pd.DataFrame(rows)


def gain_table(arms: Sequence[Arm]) -> pd.DataFrame:
    """Make the table of points above the model before training, paired by problem: a row per part and arm.

    Cells are `Difference`s.
    """
    members = find_members(arms[0].runs[0])
    rows = []
    for part, prefix in find_parts(arms[0]).items():
        for arm in arms:
            index = members[prefix]
            cells = {
                f"pass@{k}": Difference.paired(np.stack([run.gains[k].to_numpy()[index] for run in arm.runs]))
                for k in find_ks(arm, prefix)
            }
            counts = {"seeds": len(arm.runs), "problems": len(index)}
            rows.append({"part": part, "arm": arm.label, **counts, **cells})
    return pd.DataFrame(rows)


def signal_table(arms: Sequence[Arm]) -> pd.DataFrame:
    """Make the table of where each arm's training signal came from: `Estimate`s over seeds of means over steps.

    Its columns: negative groups at the start and at the end (over EDGE_STEPS steps) in % of all groups; their share of
    the sum of |advantage| and of the gradient's norm in %; entropy at the end in nats; tokens trained on in % of those
    generated; median seconds of a step.
    """

    def estimates(run_means: Callable[[pd.DataFrame], float], arm: Arm) -> Estimate:
        return Estimate.over([run_means(run.metrics) for run in arm.runs])

    nothing = pd.Series(dtype=float)  # where trainer.grad_share_every is 0
    columns: dict[str, Callable[[pd.DataFrame], float]] = {
        "negative at start": lambda m: 100 * mean_at_start(m["groups/frac_negative"]),
        "negative at end": lambda m: 100 * mean_at_end(m["groups/frac_negative"]),
        "share of |A|": lambda m: 100 * m["groups/advantage_share_negative"].mean(),
        "share of gradient": lambda m: 100 * m.get("groups/grad_norm_share_negative", nothing).mean(),
        "entropy": lambda m: mean_at_end(m["entropy"]),
        "tokens trained": lambda m: 100 * last_total(m, "tokens_trained") / last_total(m, "tokens_generated"),
        "s/step": lambda m: m["time/step_s"].median(),
    }
    return pd.DataFrame(
        [
            {"arm": arm.label, "seeds": len(arm.runs)} | {n: estimates(f, arm) for n, f in columns.items()}
            for arm in arms
        ]
    )


def compute_table(arms: Sequence[Arm]) -> pd.DataFrame:
    """Make the table of what each arm cost: millions of tokens and hours of wall-clock time, summed over seeds."""
    rows = []
    for arm in arms:
        metrics = [run.metrics for run in arm.runs]

        def hours(name: str, metrics: list[pd.DataFrame] = metrics) -> float:
            return sum(m[name].sum() for m in metrics if name in m) / 3600

        rows.append(
            {
                "arm": arm.label,
                "runs": len(arm.runs),
                "steps": sum(int(m.index.max()) for m in metrics),
                "M tokens generated": sum(last_total(m, "tokens_generated") for m in metrics) / 1e6,
                "M tokens trained": sum(last_total(m, "tokens_trained") for m in metrics) / 1e6,
                "h training": hours("time/step_s"),
                "h evaluating": hours("time/evaluate_s"),
            }
        )
    total = {"arm": "all"} | {name: sum(row[name] for row in rows) for name in rows[0] if name != "arm"}
    return pd.DataFrame([*rows, total]).map(lambda value: round(value, 3) if isinstance(value, float) else value)


def runs_table(arms: Sequence[Arm]) -> pd.DataFrame:
    """Make the table of single runs: pass@k of the last evaluation in %, of all problems and by level.

    A row per run and part, from which means and t intervals over seeds follow. The bootstrap needs the problems too,
    which stand in the runs' folders.
    """
    rows = []
    for arm in arms:
        for part, prefix in find_parts(arm).items():
            for run in arm.runs:
                last, named = run.evaluations.iloc[-1], {"arm": arm.label, "part": part, "seed": run.seed}
                found = {f"pass@{k}": round(100 * last[f"{prefix}/pass@{k}"], 3) for k in find_ks(arm, prefix)}
                rows.append(named | {"step": run.evaluations.index[-1]} | found)
    return pd.DataFrame(rows)


def mean_at_start(series: pd.Series) -> float:
    """Return the mean over the first EDGE_STEPS steps."""
    return series.dropna().head(EDGE_STEPS).mean()


def mean_at_end(series: pd.Series) -> float:
    """Return the mean over the last EDGE_STEPS steps."""
    return series.dropna().tail(EDGE_STEPS).mean()


def last_total(metrics: pd.DataFrame, total: str) -> float:
    """Return the last value of a running total."""
    return metrics[f"total/{total}"].dropna().iloc[-1]
