"""Chooses the arm that each arm is compared with, and pairs their runs by seed."""

from __future__ import annotations

from collections.abc import Sequence

from lens.config.keys import find_differing_keys
from lens.reporting.arms import Arm
from lens.runs.run import Run


def find_baseline(arm: Arm, arms: Sequence[Arm], baseline: str | None) -> Arm | None:
    """Return the baseline arm of the same setting to compare an arm with, or None.

    It is the baseline arm that differs only in its objective, else the one of the same experiment, else the first one.
    """
    if twin := find_twin(arm, arms, baseline):
        return twin
    named = [a for a in arms if a.setting == arm.setting and baseline in (a.label, a.variant)]
    own = [a for a in named if a.experiment == arm.experiment]
    found = next(iter(own or named), None)
    return None if found is arm else found


def find_twin(arm: Arm, arms: Sequence[Arm], baseline: str | None) -> Arm | None:
    """Return the arm that has the baseline as its objective and differs in nothing else, or None.

    If there are several, it is the one of the same experiment.
    """
    if arm.runs[0].objective == baseline:
        return None
    others = [a for a in arms if a.setting == arm.setting and a.runs[0].objective == baseline]
    twins = [a for a in others if not list_other_differences(a, arm)]
    return min(twins, key=lambda a: a.experiment != arm.experiment, default=None)


def list_other_differences(a: Arm, b: Arm) -> list[str]:
    """Return the keys in which two arms differ, without the objective and evaluation.every."""
    x, y = ({k: v for k, v in arm.runs[0].config.items() if k != "objective"} for arm in (a, b))
    return [key for key in find_differing_keys(x, y) if key != "evaluation.every"]


def split_by_baseline(arms: Sequence[Arm], baseline: str | None) -> list[list[Arm]]:
    """Split the arms of one setting by the baseline arm that they are compared with.

    It splits only if two or more baseline arms have a twin; see `find_twin`.
    """
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
    """Pair the runs of two arms that share a seed, in the order of their seeds."""
    of_base = {run.seed: run for run in base.runs}
    return [(run, of_base[run.seed]) for run in arm.runs if run.seed in of_base]
