"""Arms: the runs that differ in nothing but their seed, beside those that they can be compared with."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lens.cli import NOT_HASHED
from lens.errors import ConfigError
from lens.reporting.runs import Run, load_run, unfinished, walk, without_rhythm

NOT_COMPARED = ("seed", *NOT_HASHED)
SETTING = ("model", "dataset", "evaluation")  # the groups that decide what can be compared with what
NAMED = 8  # of what is too much to be named


@dataclass(frozen=True)
class Arm:
    """Runs of one config, a seed each, in the order of their seeds.

    ``variant`` is what sets it apart inside its experiment, ``label`` names the experiment too where others need it.
    """

    label: str
    runs: Sequence[Run]
    variant: str = ""

    @property
    def seeds(self) -> list[int]:
        """Of its runs, ascending."""
        return [run.seed for run in self.runs]

    @property
    def experiment(self) -> str:
        """That of its runs."""
        return self.runs[0].experiment

    @property
    def setting(self) -> str:
        """That of its runs: see `Run.setting`."""
        return self.runs[0].setting

    def final(self) -> pd.DataFrame:
        """The last evaluation of every run: a row per seed."""
        return pd.DataFrame({run.seed: run.evaluations.iloc[-1] for run in self.runs}).T


def load_arms(folders: Sequence[Path]) -> tuple[list[Arm], list[str]]:
    """The arms of all finished runs below some folders, and a line for each thing there that is odd.

    Arms of one setting stand together; the setting with the most runs is the first.

    Raises:
        ConfigError: no finished run; in one arm two configs or a seed twice; in one setting different problems; in one
            experiment different evaluations.
    """
    runs, oddities = [], []
    where = ", ".join(map(str, folders))
    for folder in folders:
        if not folder.is_dir():
            oddities.append(f"{folder}: no such folder")
        for found in walk(folder, set()):
            if isinstance(found, str):
                oddities.append(found)
            elif (found / "evaluation.parquet").exists():  # left by scripts/evaluate.py
                continue
            elif (reason := unfinished(found)) is not None:
                oddities.append(f"{found}: {reason}, left out")
            else:
                try:
                    runs.append(load_run(found))
                except (OSError, ValueError, KeyError, IndexError, YAMLError, OmegaConfBaseException) as error:
                    told = " ".join(str(error).split())[:200]
                    oddities.append(f"{found}: cannot be read ({type(error).__name__}: {told}), left out")
    if not runs:
        seen = f"; found: {'; '.join(oddities)}" if oddities else ""
        raise ConfigError("runs", where, f"a folder with finished runs (each has a summary.json){seen}")
    check_evaluations(runs, where)
    settings = Counter(run.setting for run in runs)
    arms = [arm for setting, _ in settings.most_common() for arm in arms_of([r for r in runs if r.setting == setting])]
    for arm in arms:
        check_arm(arm)
    for setting in settings:
        members = [arm for arm in arms if arm.setting == setting]
        check_problems(members, where)
        oddities += other_experiments(members) + missing_seeds(members)
    if len(settings) > 1:
        oddities += [apart(arms, setting) for setting, _ in settings.most_common()[1:]]
    return arms, oddities


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """The arms of one setting, GRPO first."""
    shared = set.intersection(*(set(run.overrides) for run in runs))
    members: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        variant = label_of(run.objective, [override for override in run.overrides if override not in shared])
        members.setdefault((variant, run.experiment), []).append(run)
    common = Counter(variant for variant, _ in members)
    arms = []
    for variant, experiment in sorted(members, key=lambda key: (key[0] != "grpo", natural(key[0]), key[1])):
        label = variant if common[variant] == 1 else f"{experiment}: {variant}"
        of_arm = sorted(members[variant, experiment], key=lambda run: run.seed)
        arms.append(Arm(label, of_arm, variant))
    return arms


def natural(text: str) -> list[tuple[float, str]]:
    """A key to sort by in which numbers count as numbers: alpha=4 comes before alpha=16."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if place % 2 else (-1.0, part) for place, part in enumerate(parts)]


def label_of(objective: str, overrides: Sequence[str]) -> str:
    """What a run is called in tables: its objective, and the overrides that not all runs share."""
    apart = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        head = key.split(".")[0]
        if key.startswith("objective.") or head not in ("objective", "experiment", *SETTING, *NOT_COMPARED):
            apart.append(f"{key.removeprefix('objective.').removeprefix('trainer.')}={value}")
    return " ".join([objective, *apart])


def title_of(arms: Sequence[Arm]) -> str:
    """What a setting is called: its experiments, its model and its training set."""
    choices = arms[0].runs[0].choices
    experiments = " + ".join(dict.fromkeys(arm.experiment for arm in arms))
    return " · ".join(filter(None, [experiments, choices.get("model"), choices.get("dataset")]))


def baseline_of(arm: Arm, arms: Sequence[Arm], baseline: str | None) -> Arm | None:
    """The arm of the same setting to compare an arm with.

    The one that differs in its objective alone, else the one of its own experiment, else the first there is.
    """
    if twin := twin_of(arm, arms, baseline):
        return twin
    named = [a for a in arms if a.setting == arm.setting and baseline in (a.label, a.variant)]
    own = [a for a in named if a.experiment == arm.experiment]
    found = next(iter(own or named), None)
    return None if found is arm else found


def twin_of(arm: Arm, arms: Sequence[Arm], baseline: str | None) -> Arm | None:
    """The arm with the baseline as its objective that differs in nothing else, of its own experiment if possible."""
    if arm.runs[0].objective == baseline:
        return None
    others = [a for a in arms if a.setting == arm.setting and a.runs[0].objective == baseline]
    twins = [a for a in others if not beside_objective(a, arm)]
    return min(twins, key=lambda a: a.experiment != arm.experiment, default=None)


def beside_objective(a: Arm, b: Arm) -> list[str]:
    """The keys in which two arms differ besides their objective; how often they were evaluated does not count."""
    x, y = ({k: v for k, v in arm.runs[0].config.items() if k != "objective"} for arm in (a, b))
    return [key for key in differing_keys(x, y) if key != "evaluation.every"]


# --- what is odd, and what is refused --------------------------------------------------------------------------------


def other_experiments(arms: Sequence[Arm]) -> list[str]:
    """A line for each experiment of a setting but the one with the most runs."""
    counts = Counter(run.experiment for arm in arms for run in arm.runs)
    (first, _), *others = counts.most_common()
    lines = []
    for name, number in others:
        labels = ", ".join(arm.label for arm in arms if arm.experiment == name)
        lines.append(f"{number} run(s) of another experiment than {first}, with arms of their own: {name} ({labels})")
    return lines


def missing_seeds(arms: Sequence[Arm]) -> list[str]:
    """A line for each arm that lacks seeds which other arms of its experiment have."""
    lines = []
    for arm in arms:
        seeds = {seed for other in arms if other.experiment == arm.experiment for seed in other.seeds}
        if missing := sorted(seeds - set(arm.seeds)):
            named = shortened(map(str, missing))
            lines.append(f"{arm.label}: no finished run with seed {named} ({len(missing)} of {len(seeds)} seeds)")
    return lines


def apart(arms: Sequence[Arm], setting: str) -> str:
    """That the arms of a setting are reported apart from the first setting's, and why."""
    members = [arm for arm in arms if arm.setting == setting]
    a, b = ({key: run.config.get(key) for key in SETTING} for run in (arms[0].runs[0], members[0].runs[0]))
    differing = [key for key in differing_keys(a, b) if key != "evaluation.every"]
    named = shortened(str(run.folder) for arm in members for run in arm.runs)
    return f"{title_of(members)}: reported apart from {title_of(arms[:1])}, as {differing} differ ({named})"


def check_evaluations(runs: Sequence[Run], where: str) -> None:
    """Raises ConfigError where runs of one experiment on one model and dataset were evaluated differently."""
    first: dict[str, Run] = {}
    found = []
    for run in runs:
        asked = json.dumps([run.experiment, run.config.get("model"), run.config.get("dataset")], sort_keys=True)
        other = first.setdefault(asked, run)
        a, b = without_rhythm(other.evaluation), without_rhythm(run.evaluation)
        if differing := differing_keys(a, b, "evaluation."):
            found.append(f"{run.folder} and {other.folder} differ in {differing}")
    refuse(where, "runs of one evaluation", found)


def check_problems(arms: Sequence[Arm], where: str) -> None:
    """Raises ConfigError where the last evaluations of a setting's runs did not ask the same problems."""
    first, found = arms[0].runs[0], []
    for run in (run for arm in arms for run in arm.runs):
        a, b = (r.problems[["set", "id", "n"]].reset_index(drop=True) for r in (first, run))
        if not a.equals(b):
            different = sorted(set(map(tuple, a.to_numpy())) ^ set(map(tuple, b.to_numpy())))
            ids = shortened(dict.fromkeys(str(name) for _, name, _ in different))
            found.append(f"{run.folder} and {first.folder} differ in {len(different)} rows ({ids})")
    refuse(where, "runs evaluated on the same problems", found)


def check_arm(arm: Arm) -> None:
    """Raises ConfigError where the runs of an arm differ in more than their seed, or repeat one."""
    first, found = arm.runs[0], []
    for run in arm.runs[1:]:
        if differing := differing_keys(first.config, run.config):
            found.append(f"{run.folder} and {first.folder} differ in {differing}")
    refuse(arm.label, "runs that differ in their seed alone", found)
    if len(set(arm.seeds)) < len(arm.seeds):
        twice = sorted({seed for seed in arm.seeds if arm.seeds.count(seed) > 1})
        folders = ", ".join(str(run.folder) for run in arm.runs if run.seed in twice)
        raise ConfigError("runs", arm.label, f"one run a seed; seeds {twice} occur again in {folders}")


def refuse(value: str, valid: str, found: Sequence[str]) -> None:
    """Raises ConfigError with what was found, if anything was."""
    if found:
        raise ConfigError("runs", value, f"{valid}; {shortened(found, '; ')}")


def shortened(names: Iterable[str], between: str = ", ") -> str:
    """The first few of many, and that there are more."""
    names = list(names)
    return between.join(names[:NAMED]) + (f"{between}… ({len(names)})" if len(names) > NAMED else "")


def differing_keys(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys in which two configs differ, but for those that do not change results."""
    found = []
    for key in sorted(set(a) | set(b)):
        if not prefix and key in NOT_COMPARED:
            continue
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            found += differing_keys(x, y, f"{prefix}{key}.")
        elif x != y:
            found.append(f"{prefix}{key}")
    return found
