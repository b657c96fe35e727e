"""Measures whole steps of GRPO, with each engine and in TRL."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig

from lens.benchmarking.arm import ArmProcess, Report, Turn
from lens.benchmarking.measuring import alternate, format_paired_ratio, format_share, take_medians
from lens.benchmarking.meter import Row
from lens.benchmarking.trl import PEERS, check_trl, serve_trl
from lens.benchmarking.workload import Workload


def measure_step(config: DictConfig) -> list[Row]:
    """Measure whole steps of GRPO, each arm in a process of its own."""
    if PEERS.keys() & set(config.arms):
        check_trl(config)
    with ExitStack() as stack:
        arms = {}
        for name in config.arms:
            served = (serve_trl, config, PEERS[name]) if name in PEERS else (serve_lens, config, name)
            arm = ArmProcess(name, *served)
            stack.callback(arm.close)
            arm.receive()  # wait until it is ready, so that nothing else starts or is measured meanwhile
            arms[name if name in PEERS else f"lens, {name}"] = arm
        return alternate(arms, rounds=config.rounds, warmup=config.warmup)


def tabulate_step(rows: Sequence[Row], peaks: dict[str, float]) -> pd.DataFrame:
    """Return a table of the seconds of a step and of its phases.

    The last columns are the ratios of TRL's step to the arm's, or of the first arm's step where TRL was not measured.
    """
    rows = [{**row, "tokens_per_s": row["completion_tokens"] / row["step_s"]} for row in rows]
    middle = take_medians(rows)
    others = [name for name in PEERS if name in middle.index] or [middle.index[0]]
    phases = {"sync": "sync_s", "sampling": "sample_s", "grading": "grade_s", "log-probs": "logprobs_s"}
    return pd.DataFrame(
        [
            {
                "arm": arm,
                "step s": f"{values.step_s:.2f}",
                **{name: f"{values[column]:.2f}" for name, column in phases.items()},
                "update": f"{values.update_s:.2f}",
                "tokens/s": f"{values.tokens_per_s:.0f}",
                "tokens": f"{values.completion_tokens:.0f}",
                "peak GiB": f"{values.peak_gib:.2f}",
                "update's share of peak": format_share(values, peaks),
                **{f"{other} / arm": format_paired_ratio(rows, "step_s", other, arm) for other in others},
            }
            for arm, values in middle.iterrows()
        ]
    )


def serve_lens(turn: Turn, report: Report, config: DictConfig, engine: str) -> None:
    """Take steps of lens with one of its rollout engines; this is a target of `ArmProcess`."""
    work = Workload.load(config)
    with instantiate(config.grader) as grader, work.sampler(config.engines[engine]) as sampler:
        report({})
        while True:
            report(work.step(sampler, grader, turn()))
