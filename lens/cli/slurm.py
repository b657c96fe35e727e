"""Asks a SLURM cluster what it has and what it runs, by SLURM's own commands."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lens.errors import ConfigError

ANSWERS_WITHIN_S = 60
USUAL_TIMEOUT_S = 300  # SLURM's default, within which a node must answer
EARLY_BY_S = 60  # SLURM may send a signal so much too early
USUAL_CPUS = 8  # for each process: tokenization, grading, and the engine's own thread
LAUNCHER = "hydra.launcher"


class SlurmError(Exception):
    """Says in one line why one of SLURM's commands failed."""


@dataclass(frozen=True)
class Node:
    """What a node offers in one partition."""

    partition: str
    is_default: bool
    cpus: int
    gpus: int


def ask(*command: str) -> str:
    """Return what one of SLURM's commands prints.

    Raises:
        SlurmError: it is not installed, or it failed.
    """
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=ANSWERS_WITHIN_S)
    except FileNotFoundError as error:
        raise SlurmError(f"needs a machine with SLURM's commands; there is no {command[0]} here") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} gave no answer within {ANSWERS_WITHIN_S} s") from error
    if result.returncode:
        raise SlurmError(f"{command[0]} says: {' '.join(result.stderr.split())}")
    return result.stdout


def list_nodes() -> list[Node]:
    """Return every node of every partition.

    Raises:
        SlurmError: the cluster cannot be asked.
    """
    nodes = []
    for line in ask("sinfo", "--noheader", "--Node", "--format=%P|%c|%G").splitlines():
        partition, cpus, resources = line.split("|")
        gpus = sum(map(int, re.findall(r"gpu(?::[^,:(]+)?:(\d+)", resources)))
        nodes.append(Node(partition.rstrip("*"), partition.endswith("*"), int(cpus), gpus))
    return nodes


def fit_to_cluster(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the launcher's options with the GPUs and cores that the cluster has, where they are null.

    Args:
        options: those of configs/hydra/launcher/submitit_slurm.yaml.

    Raises:
        ConfigError: the cluster cannot be asked, has no such partition, or none with as much as is asked for; or the
            time limit leaves no time.
    """
    least = (options["signal_delay_s"] + EARLY_BY_S) / 60
    if options["timeout_min"] <= least:
        valid = f"must be more than {least:g}: signal_delay_s, and {EARLY_BY_S} s by which SLURM may be early"
        raise ConfigError(f"{LAUNCHER}.timeout_min", options["timeout_min"], valid)
    try:
        known = list_nodes()
    except SlurmError as error:
        raise ConfigError("hydra/launcher", "submitit_slurm", str(error)) from error
    nodes = nodes_of(options["partition"], known)
    return fit_to_nodes(options, nodes) if nodes else dict(options)  # without a default partition SLURM will say so


def fit_to_nodes(options: Mapping[str, Any], nodes: list[Node]) -> dict[str, Any]:
    """Return the options with the GPUs and cores that some nodes have, where they are null.

    Args:
        options: as for `fit_to_cluster`.
        nodes: those of the partition; at least one.

    Raises:
        ConfigError: the nodes do not have as much as is asked for.
    """
    tasks, gpus, cpus = (options[key] for key in ("tasks_per_node", "gpus_per_node", "cpus_per_task"))
    where = f"partition {options['partition']}" if options["partition"] else "the default partition"
    most_gpus, most_cpus = max(node.gpus for node in nodes), max(node.cpus for node in nodes)
    if gpus is None and not (options.get("gres") or options.get("gpus_per_task")):
        gpus = tasks if most_gpus else 0
    if (gpus or 0) > most_gpus:
        key = (
            "tasks_per_node" if options["gpus_per_node"] is None else "gpus_per_node"
        )  # where it follows from the other
        raise ConfigError(f"{LAUNCHER}.{key}", gpus, f"must be at most {most_gpus}, the GPUs of a node of {where}")
    if cpus is None and not options.get("cpus_per_gpu"):
        cpus = max(1, min(USUAL_CPUS, most_cpus // tasks))
    if tasks * (cpus or 1) > most_cpus:
        valid = f"times cpus_per_task={cpus or 1} must be at most {most_cpus}, the cores of a node of {where}"
        raise ConfigError(f"{LAUNCHER}.tasks_per_node", tasks, valid)
    large = sum(node.gpus >= (gpus or 0) and node.cpus >= tasks * (cpus or 1) for node in nodes)
    if options["nodes"] > large:
        valid = f"must be at most {large}, the nodes of {where} with as many cores and GPUs"
        raise ConfigError(f"{LAUNCHER}.nodes", options["nodes"], valid)
    return {**options, "gpus_per_node": gpus or None, "cpus_per_task": cpus}


def nodes_of(partition: str | None, known: list[Node]) -> list[Node]:
    """Return the nodes of some partitions, whose names a comma separates; of the default one for None.

    Raises:
        ConfigError: there is no such partition.
    """
    if partition is None:
        return [node for node in known if node.is_default]
    names = partition.split(",")
    partitions = sorted({node.partition for node in known})
    if not set(names) <= set(partitions):
        raise ConfigError(f"{LAUNCHER}.partition", partition, f"must be one of {', '.join(partitions)}")
    return [node for node in known if node.partition in names]


def list_queue() -> set[str] | None:
    """Return this user's jobs that wait, run or are about to end, such as 12 or 12_0; None where SLURM is silent."""
    try:
        return set(ask("squeue", "--me", "--array", "--noheader", "--format=%i").split())
    except SlurmError:
        return None  # its controller may be down for a while


def state_of(job: str) -> str:
    """Return the state of a job, such as RUNNING or CANCELLED; UNKNOWN where SLURM has forgotten it or is silent."""
    try:
        return ask("squeue", "--states=all", "--noheader", f"--jobs={job}", "--format=%T").strip() or "UNKNOWN"
    except SlurmError:
        return "UNKNOWN"


def node_timeout() -> float:
    """Return the seconds within which a node must answer; then SLURM takes it for lost, and queues its jobs again."""
    try:
        found = re.search(r"^SlurmdTimeout\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    except SlurmError:
        found = None
    return float(found[1]) if found else USUAL_TIMEOUT_S
