"""Mixes problems of several sources into a training set, and reports the evaluation problems in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, concatenate_datasets

from lens.errors import ConfigError
from lens.problems.decontamination import describe_overlap, find_held, fingerprints
from lens.problems.sources import draw_problems, load_pool, load_problems
from lens.problems.upstream import find_files
from lens.problems.worlds import list_worlds

log = logging.getLogger(__name__)


def check_files(sources: Mapping[str, Any], key: str) -> None:
    """Refuse local files that cannot be read, before any problem is loaded.

    Args:
        sources: sections of a config. Those with a ``path`` are sources.
        key: where they stand in the config.

    Raises:
        ConfigError: a file is missing, empty or of an unknown kind; the message names the first.
    """
    for name, section in sources.items():
        if (
            isinstance(section, Mapping)
            and section.get("path") is not None
            and section.get("source") not in list_worlds()
        ):
            find_files(section["path"], f"{key}.{name}.path")


def load_evaluation_sets(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Dataset]:
    """Load the evaluation sets of a config, by name. Each section holds the arguments of `load_problems`."""
    return {
        name: load_problems(**{"source": None, **node}, key=f"evaluation.sets.{name}") for name, node in sets.items()
    }


def load_mixture(
    evaluation_sets: Mapping[str, Dataset],
    *,
    seed: int,
    decontaminate: bool | str = "report",
    **sources: Mapping[str, Any],
) -> tuple[Dataset, dict[str, dict[str, Any]]]:
    """Load the training problems of all sources, one after the other, and report the evaluation problems among them.

    Args:
        evaluation_sets: the problems that the run is evaluated on, by the name of the set.
        seed: seed of every draw of ``size`` problems. Runs with the same seed have the same training set, whatever
            their objective.
        decontaminate: ``report`` warns of evaluation problems in the training set and leaves them there. True leaves
            them out, before the draw. False does not look for them.
        sources: for each source its arguments for `load_problems`. Its seed is ``seed`` unless it has one of its own.

    Returns:
        The problems; and for each evaluation set a report with the keys of `describe_overlap` and ``removed``. If
        ``removed`` is false, it counts the set's problems in the training set; if true, those in the pools that the
        training set was drawn from. The report is empty if ``decontaminate`` is False.

    Raises:
        ConfigError: `load_problems` refuses a source, there is no source or no problem, or two sources share an id.
    """
    if not (isinstance(decontaminate, bool) or decontaminate == "report"):
        raise ConfigError("dataset.decontaminate", decontaminate, "must be report, true or false")
    if type(seed) is not int:
        raise ConfigError("dataset.seed", seed, "must be a whole number")
    if not sources:
        raise ConfigError("dataset", None, "names no source; it needs one or more, such as dataset.math.source=math")
    remove = decontaminate is True
    exclude = set().union(*map(fingerprints, evaluation_sets.values())) if remove else frozenset()

    pools, parts = {}, {}
    unsaid = {"source": None, "path": None, "split": None, "size": None, "seed": seed}
    for name, node in sources.items():
        arguments = {**unsaid, **node, "key": f"dataset.{name}"}
        pools[name] = load_pool(**arguments)
        choice = {argument: arguments[argument] for argument in ("size", "seed", "key")}
        parts[name] = draw_problems(pools[name], **choice, exclude=exclude)
    problems = join_problems(parts)
    if decontaminate is False:
        return problems, {}
    texts = fingerprints(concatenate_datasets(list(pools.values())) if remove else problems)
    report = {
        name: describe_overlap(find_held(texts, evaluation), evaluation) | {"removed": remove}
        for name, evaluation in evaluation_sets.items()
    }
    log_contamination(report)
    return problems, report


def join_problems(parts: Mapping[str, Dataset]) -> Dataset:
    """Join all parts, one after the other, and log their sizes.

    Raises:
        ConfigError: two parts share an id, or all are empty.
    """
    owner: dict[str, str] = {}
    for name, part in parts.items():
        for id in part["id"]:
            if (other := owner.setdefault(id, name)) != name:
                raise ConfigError(f"dataset.{name}", id, f"is in dataset.{other} too; take each problem once")
    if not owner:
        raise ConfigError("dataset", list(parts), "leaves no problem to train on; the log says why rows were dropped")
    problems = concatenate_datasets(list(parts.values()))
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in parts.items())
    different = len(fingerprints(problems))
    log.info("training set: %s problems (%s), %s different", f"{len(problems):,}", sizes, f"{different:,}")
    return problems


def log_contamination(report: Mapping[str, Mapping[str, Any]]) -> None:
    """Log a report of `load_mixture`. Warn for each evaluation set that shares problems with the training set."""
    for name, found in report.items():
        levels = ", ".join(f"{level}: {count}" for level, count in found["by_level"].items())
        share = f"{found['count']:,} of the {found['of']:,} problems of evaluation set {name} (by level {levels})"
        if not found["count"]:
            log.info("no problem of evaluation set %s is in the training data", name)
        elif found["removed"]:
            log.info("%s were left out of the training set", share)
        else:
            log.warning("CONTAMINATION: the training set holds %s; dataset.decontaminate=true leaves them out", share)
