"""Chooses the arm that each arm is compared with, and pairs their runs by seed."""

from __future__ import annotations

from collections.abc import Sequence

from lens.config.keys import find_differing_keys
from lens.reporting.arms import Arm
from lens.runs.run import Run


def find_baseline(arm: Arm, arms: Sequence[Arm], baseline: str | None) -> Arm | None:
    """The arm of the same setting to compare an arm with.

    The one that differs in its objective alone, else the one of its own experiment, else the first there is.
    """
    if twin := find_twin(arm, arms, baseline):
        return twin
    named = [a for a in arms if a.setting == arm.setting and baseline in (a.label, a.variant)]
    own = [a for a in named if a.experiment == arm.experiment]
    found = next(iter(own or named), None)
    return None if found is arm else found


def find_twin(arm: Arm, arms: Sequence[Arm], baseline: str | None) -> Arm | None:
    """The arm with the baseline as its objective that differs in nothing else, of its own experiment if possible."""
    if arm.runs[0].objective == baseline:
        return None
    others = [a for a in arms if a.setting == arm.setting and a.runs[0].objective == baseline]
    twins = [a for a in others if not list_other_differences(a, arm)]
    return min(twins, key=lambda a: a.experiment != arm.experiment, default=None)


def list_other_differences(a: Arm, b: Arm) -> list[str]:
    """The keys in which two arms differ besides their objective; how often they were evaluated does not count."""
    x, y = ({k: v for k, v in arm.runs[0].config.items() if k != "objective"} for arm in (a, b))
    return [key for key in find_differing_keys(x, y) if key != "evaluation.every"]


def split_by_baseline(arms: Sequence[Arm], baseline: str | None) -> list[list[Arm]]:
    """The arms of one setting, apart where there are several baselines: each with those that are compared with it."""
    bases = [find_baseline(arm, arms, baseline) for arm in arms]
    heads = [arm for arm in arms if any(find_twin(other, arms, baseline) is arm for other in arms)]
    if len(heads) < 2:
        return [list(arms)]
    parts = [[head] for head in heads]
    for arm, base in zip(arms, bases, strict=True):
        if arm not in heads:
            parts[heads.index(base) if base in heads else 0].append(arm)
    return parts


def pair_runs(arm: Arm, base: Arm) -> list[tuple[Run, Run]]:
    """The runs of two arms that share a seed, in the order of their seeds."""
    of_base = {run.seed: run for run in base.runs}
    return [(run, of_base[run.seed]) for run in arm.runs if run.seed in of_base]
