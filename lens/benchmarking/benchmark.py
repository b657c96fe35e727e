"""Runs one part of the benchmark: measures it, prints its table, and writes the measurements and their provenance."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from lens.benchmarking.host_memory import measure_host_memory, tabulate_host_memory
from lens.benchmarking.measuring import describe_machine, measure_matrix_peaks
from lens.benchmarking.meter import Row
from lens.benchmarking.objective import measure_objective, tabulate_objective
from lens.benchmarking.plan import measure_plan, tabulate_plan
from lens.benchmarking.sampling import measure_sampling, tabulate_sampling
from lens.benchmarking.scaling import draw_scaling, measure_scaling, tabulate_scaling
from lens.benchmarking.step import measure_step, tabulate_step
from lens.benchmarking.trl import PEERS
from lens.benchmarking.update import measure_update, tabulate_update
from lens.commands.assembly import model_path, use_threads
from lens.config.checks import check_values
from lens.errors import ConfigError
from lens.files import write_json
from lens.models.precision import settle_precision
from lens.runs.provenance import describe_provenance
from lens.terminal import show_table

log = logging.getLogger(__name__)

MEASUREMENTS, TABLE = "measurements.json", "table.csv"


def benchmark(config: DictConfig, folder: Path) -> pd.DataFrame:
    """Measure ``config.part``, print its table and return it.

    The folder gets measurements.json (every row), table.csv and provenance.json.

    Raises:
        ConfigError: a value that cannot work.
    """
    check_values(config)
    check_arms(config)
    use_threads(config.trainer.memory.num_threads)
    settle_precision(config)  # before other keys take what model.dtype is
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    config.model.name_or_path = model_path(config)
    part = PARTS[config.part]

    dtypes = sorted({"bfloat16", "float32", config.model.dtype})
    before, peaks = describe_machine(), measure_matrix_peaks(config.peak_size, dtypes)
    rows = part.measure(config)
    again, after = measure_matrix_peaks(config.peak_size, dtypes), describe_machine()
    peaks = {dtype: max(peaks[dtype], again[dtype]) for dtype in peaks}
    write_json(folder / "provenance.json", describe_provenance())
    write_json(
        folder / MEASUREMENTS,
        {
            "part": config.part,
            "config": OmegaConf.to_container(config),
            "machine": {"before": before, "after": after, "matrix_peak_flops_per_s": peaks},
            "rows": rows,
        },
    )
    table = part.table(rows, peaks)
    table.to_csv(folder / TABLE, index=False)
    rounds = len({row["round"] for row in rows})
    show_table(f"{part.title} ({rounds} rounds)", table)
    speeds = ", ".join(f"{dtype} {peak / 1e9:,.0f}" for dtype, peak in peaks.items())
    print(f"matrix products of this machine in GFLOP/s: {speeds} ({before['threads']} threads)")
    if config.part == "scaling":
        print(f"figure: {draw_scaling(rows, folder / 'scaling.png')}")
    print(f"rows and table: {folder}")
    return table


def check_arms(config: DictConfig) -> None:
    """Refuse a list of ``arms`` that the part cannot measure.

    Raises:
        ConfigError: there is no arm, an unknown one, or one twice, or TRL is first where an engine is needed.
    """
    known = [*config.engines, *PEERS]
    arms = list(config.arms)
    if not arms or len(set(arms)) < len(arms) or not set(arms) <= set(known):
        raise ConfigError("arms", arms, f"must be a list of distinct names, out of {', '.join(known)}")
    if config.part in ("sampling", "objective") and arms[0] in PEERS:
        raise ConfigError("arms", arms, "must begin with a rollout engine: part=step alone measures TRL")


class Part(NamedTuple):
    """One part of the benchmark.

    Attributes:
        title: the title of its table.
        measure: takes the config and returns the rows that it measured.
        table: takes the rows and the machine's peaks in FLOP/s, and returns the table that is printed.
    """

    title: str
    measure: Callable[[DictConfig], list[Row]]
    table: Callable[[Sequence[Row], dict[str, float]], pd.DataFrame]


PARTS = {
    "sampling": Part("Rollout engines on the same prompts: medians", measure_sampling, tabulate_sampling),
    "step": Part("One step of GRPO: medians, in seconds", measure_step, tabulate_step),
    "update": Part("One update: medians", measure_update, tabulate_update),
    "scaling": Part("A step of other sizes: medians, in seconds", measure_scaling, tabulate_scaling),
    "memory": Part("Host memory of a process in GiB: medians", measure_host_memory, tabulate_host_memory),
    "plan": Part("One update beside its plan: medians", measure_plan, tabulate_plan),
    "objective": Part("What an objective costs: means", measure_objective, tabulate_objective),
}
