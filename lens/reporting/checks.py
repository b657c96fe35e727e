"""Refuses runs that cannot be compared, and notes what is odd about the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from lens.config.keys import find_differing_keys
from lens.errors import ConfigError
from lens.reporting.arms import SETTING, Arm, make_setting_title
from lens.reporting.pairing import find_baseline, list_other_differences
from lens.runs.run import Run, drop_rhythm

NAMED = 8  # of what is too much to be named


def note_other_experiments(arms: Sequence[Arm]) -> list[str]:
    """A line for each experiment of a setting but the one with the most runs."""
    counts = Counter(run.experiment for arm in arms for run in arm.runs)
    (first, _), *others = counts.most_common()
    lines = []
    for name, number in others:
        labels = ", ".join(arm.label for arm in arms if arm.experiment == name)
        lines.append(f"{number} run(s) of another experiment than {first}, with arms of their own: {name} ({labels})")
    return lines


def note_missing_seeds(arms: Sequence[Arm]) -> list[str]:
    """A line for each arm that lacks seeds which other arms of its experiment have."""
    lines = []
    for arm in arms:
        seeds = {seed for other in arms if other.experiment == arm.experiment for seed in other.seeds}
        if missing := sorted(seeds - set(arm.seeds)):
            named = shorten(map(str, missing))
            lines.append(f"{arm.label}: no finished run with seed {named} ({len(missing)} of {len(seeds)} seeds)")
    return lines


def note_separate_setting(arms: Sequence[Arm], setting: str) -> str:
    """That the arms of a setting are reported apart from the first setting's, and why."""
    members = [arm for arm in arms if arm.setting == setting]
    a, b = ({key: run.config.get(key) for key in SETTING} for run in (arms[0].runs[0], members[0].runs[0]))
    differing = [key for key in find_differing_keys(a, b) if key != "evaluation.every"]
    named = shorten(str(run.folder) for arm in members for run in arm.runs)
    title, first = make_setting_title(members), make_setting_title(arms[:1])
    return f"{title}: reported apart from {first}, as {differing} differ ({named})"


def check_evaluations(runs: Sequence[Run], where: str) -> None:
    """Raises ConfigError where runs of one experiment on one model and dataset were evaluated differently."""
    first: dict[str, Run] = {}
    found = []
    for run in runs:
        asked = json.dumps([run.experiment, run.config.get("model"), run.config.get("dataset")], sort_keys=True)
        other = first.setdefault(asked, run)
        a, b = drop_rhythm(other.evaluation), drop_rhythm(run.evaluation)
        if differing := find_differing_keys(a, b, "evaluation."):
            found.append(f"{run.folder} and {other.folder} differ in {differing}")
    raise_if_any(where, "runs of one evaluation", found)


def check_problems(arms: Sequence[Arm], where: str) -> None:
    """Raises ConfigError where the last evaluations of a setting's runs did not ask the same problems."""
    first, found = arms[0].runs[0], []
    for run in (run for arm in arms for run in arm.runs):
        a, b = (r.problems[["set", "id", "n"]].reset_index(drop=True) for r in (first, run))
        if not a.equals(b):
            different = sorted(set(map(tuple, a.to_numpy())) ^ set(map(tuple, b.to_numpy())))
            ids = shorten(dict.fromkeys(str(name) for _, name, _ in different))
            found.append(f"{run.folder} and {first.folder} differ in {len(different)} rows ({ids})")
    raise_if_any(where, "runs evaluated on the same problems", found)


def check_arm(arm: Arm) -> None:
    """Raises ConfigError where the runs of an arm differ in more than their seed, or repeat one."""
    first, found = arm.runs[0], []
    for run in arm.runs[1:]:
        if differing := find_differing_keys(first.config, run.config):
            found.append(f"{run.folder} and {first.folder} differ in {differing}")
    raise_if_any(arm.label, "runs that differ in their seed alone", found)
    if len(set(arm.seeds)) < len(arm.seeds):
        twice = sorted({seed for seed in arm.seeds if arm.seeds.count(seed) > 1})
        folders = ", ".join(str(run.folder) for run in arm.runs if run.seed in twice)
        raise ConfigError("runs", arm.label, f"one run a seed; seeds {twice} occur again in {folders}")


def raise_if_any(value: str, valid: str, found: Sequence[str]) -> None:
    """Raises ConfigError with what was found, if anything was."""
    if found:
        raise ConfigError("runs", value, f"{valid}; {shorten(found, '; ')}")


def shorten(names: Iterable[str], between: str = ", ") -> str:
    """The first few of many, and that there are more."""
    names = list(names)
    return between.join(names[:NAMED]) + (f"{between}… ({len(names)})" if len(names) > NAMED else "")


def check_baseline(settings: Sequence[Sequence[Arm]], baseline: str | None) -> list[str]:
    """A line for each setting that cannot be compared, and for each arm that differs in more than its objective.

    Raises:
        ConfigError: no setting of several arms has an arm of that name.
    """
    several = [arms for arms in settings if len(arms) > 1]
    has = [any(find_baseline(arm, arms, baseline) for arm in arms) for arms in several]
    if baseline is None:
        return []
    if several and not any(has):
        labels = dict.fromkeys(arm.label for arms in settings for arm in arms)
        raise ConfigError("baseline", baseline, f"one of {', '.join(labels)}; null: no differences")
    notes = [
        f"{make_setting_title(arms)}: no arm {baseline} to compare with"
        for arms, found in zip(several, has, strict=True)
        if not found
    ]
    for arm, base in ((arm, find_baseline(arm, arms, baseline)) for arms in several for arm in arms):
        if base is None or base.experiment == arm.experiment:
            continue
        if differing := list_other_differences(base, arm):
            notes.append(f"{arm.label} of {arm.experiment} and {base.label} of {base.experiment} differ in {differing}")
    return notes
