"""Groups runs that differ only in their seed into arms, and names the arms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lens.config.keys import NOT_COMPARED, shorten_key
from lens.runs.run import Run

SETTING = ("model", "dataset", "evaluation")  # the config groups that comparable runs share


@dataclass(frozen=True)
class Arm:
    """Holds the runs of one config, one per seed.

    Attributes:
        label: the arm's name in a report: the variant, with the experiment if another one has the same variant.
        runs: in the order of their seeds.
        variant: the objective and the overrides that tell the arm from others of its experiment.
    """

    label: str
    runs: Sequence[Run]
    variant: str = ""

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of its runs, ascending."""
        return [run.seed for run in self.runs]

    @property
    def experiment(self) -> str:
        """Return the experiment of its runs."""
        return self.runs[0].experiment

    @property
    def setting(self) -> str:
        """Return the setting of its runs: see `Run.setting`."""
        return self.runs[0].setting

    def final(self) -> pd.DataFrame:
        """Return the metrics of every run's last evaluation: a row per seed."""
        return pd.DataFrame({run.seed: run.evaluations.iloc[-1] for run in self.runs}).T


def group_into_arms(runs: Sequence[Run]) -> list[Arm]:
    """Group the runs of one setting into arms, GRPO first."""
    shared = set.intersection(*(set(run.overrides) for run in runs))
    members: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        variant = make_label(run.objective, [override for override in run.overrides if override not in shared])
        members.setdefault((variant, run.experiment), []).append(run)
    common = Counter(variant for variant, _ in members)
    arms = []
    for variant, experiment in sorted(members, key=lambda key: (key[0] != "grpo", natural_sort_key(key[0]), key[1])):
        label = variant if common[variant] == 1 else f"{experiment}: {variant}"
        of_arm = sorted(members[variant, experiment], key=lambda run: run.seed)
        arms.append(Arm(label, of_arm, variant))
    return arms


def natural_sort_key(text: str) -> list[tuple[float, str]]:
    """Return a sort key that compares numbers as numbers: alpha=4 comes before alpha=16."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if place % 2 else (-1.0, part) for place, part in enumerate(parts)]


def make_label(objective: str, overrides: Sequence[str]) -> str:
    """Name a run for tables: its objective and its overrides, which should be those that not all runs share."""
    distinct = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        head = key.split(".")[0]
        if key.startswith("objective.") or head not in ("objective", "experiment", *SETTING, *NOT_COMPARED):
            distinct.append(f"{shorten_key(key)}={value}")
    return " ".join([objective, *distinct])


def make_setting_title(arms: Sequence[Arm]) -> str:
    """Name a setting: its experiments, its model and its training set."""
    choices = arms[0].runs[0].choices
    experiments = " + ".join(dict.fromkeys(arm.experiment for arm in arms))
    return " · ".join(filter(None, [experiments, choices.get("model"), choices.get("dataset")]))
