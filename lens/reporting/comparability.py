"""Refuses runs that cannot be compared, and notes oddities of the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from lens.config.keys import find_differing_keys
from lens.errors import ConfigError
from lens.reporting.arms import SETTING, Arm, make_setting_title
from lens.reporting.pairing import find_baseline, list_other_differences
from lens.runs.run import Run, drop_rhythm

NAMED = 8  # names in a list that is cut short


def note_other_experiments(arms: Sequence[Arm]) -> list[str]:
    """Return a line for each experiment of a setting, except the one with the most runs."""
    counts = Counter(run.experiment for arm in arms for run in arm.runs)
    (first, _), *others = counts.most_common()
    lines = []
    for name, number in others:
        labels = ", ".join(arm.label for arm in arms if arm.experiment == name)
        lines.append(f"{number} run(s) of another experiment than {first}, in separate arms: {name} ({labels})")
    return lines


def note_missing_seeds(arms: Sequence[Arm]) -> list[str]:
    """Return a line for each arm that lacks seeds of other arms of its experiment."""
    lines = []
    for arm in arms:
        seeds = {seed for other in arms if other.experiment == arm.experiment for seed in other.seeds}
        if missing := sorted(seeds - set(arm.seeds)):
            named = shorten(map(str, missing))
            lines.append(f"{arm.label}: no finished run with seed {named} ({len(missing)} of {len(seeds)} seeds)")
    return lines


def note_separate_setting(arms: Sequence[Arm], setting: str) -> str:
    """Return a line saying that a setting is reported separately from the first one, and why."""
    members = [arm for arm in arms if arm.setting == setting]
    a, b = ({key: run.config.get(key) for key in SETTING} for run in (arms[0].runs[0], members[0].runs[0]))
    differing = [key for key in find_differing_keys(a, b) if key != "evaluation.every"]
    named = shorten(str(run.folder) for arm in members for run in arm.runs)
    title, first = make_setting_title(members), make_setting_title(arms[:1])
    return f"{title}: reported separately from {first}, as {differing} differ ({named})"


def check_evaluations(runs: Sequence[Run], where: str) -> None:
    """Raise ConfigError if runs of one experiment on one model and dataset were evaluated differently."""
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
    """Raise ConfigError if the last evaluations of a setting's runs did not ask the same problems."""
    first, found = arms[0].runs[0], []
    for run in (run for arm in arms for run in arm.runs):
        a, b = (r.problems[["set", "id", "n"]].reset_index(drop=True) for r in (first, run))
        if not a.equals(b):
            different = sorted(set(map(tuple, a.to_numpy())) ^ set(map(tuple, b.to_numpy())))
            ids = shorten(dict.fromkeys(str(name) for _, name, _ in different))
            found.append(f"{run.folder} and {first.folder} differ in {len(different)} rows ({ids})")
    raise_if_any(where, "runs evaluated on the same problems", found)


def check_arm(arm: Arm) -> None:
    """Raise ConfigError if the runs of an arm differ in more than their seed, or two have the same seed."""
    first, found = arm.runs[0], []
    for run in arm.runs[1:]:
        if differing := find_differing_keys(first.config, run.config):
            found.append(f"{run.folder} and {first.folder} differ in {differing}")
    raise_if_any(arm.label, "runs that differ only in their seed", found)
    if len(set(arm.seeds)) < len(arm.seeds):
        twice = sorted({seed for seed in arm.seeds if arm.seeds.count(seed) > 1})
        folders = ", ".join(str(run.folder) for run in arm.runs if run.seed in twice)
        valid = f"must have one run per seed; seeds {twice} occur more than once, in {folders}"
        raise ConfigError("runs", arm.label, valid)


def raise_if_any(value: str, valid: str, found: Sequence[str]) -> None:
    """Raise ConfigError with the findings, if there are any."""
    if found:
        raise ConfigError("runs", value, f"must be {valid}; {shorten(found, '; ')}")


def shorten(names: Iterable[str], between: str = ", ") -> str:
    """Join names; of more than NAMED, only the first ones and their number."""
    names = list(names)
    return between.join(names[:NAMED]) + (f"{between}… ({len(names)})" if len(names) > NAMED else "")


def check_baseline(settings: Sequence[Sequence[Arm]], baseline: str | None) -> list[str]:
    """Return notes on what the baseline cannot be compared with fairly.

    There is a line for each setting without the baseline, and for each arm of another experiment that differs from its
    baseline in more than the objective.

    Raises:
        ConfigError: no setting with several arms has an arm of that name.
    """
    several = [arms for arms in settings if len(arms) > 1]
    has = [any(find_baseline(arm, arms, baseline) for arm in arms) for arms in several]
    if baseline is None:
        return []
    if several and not any(has):
        labels = dict.fromkeys(arm.label for arms in settings for arm in arms)
        raise ConfigError("baseline", baseline, f"must be one of {', '.join(labels)}; null: no differences")
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
