"""Measures the rollout engines on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import pandas as pd
from omegaconf import DictConfig

from lens.benchmarking.measuring import alternate, format_paired_ratio, take_medians
from lens.benchmarking.meter import Meter, Row
from lens.benchmarking.trl import PEERS
from lens.benchmarking.workload import Workload, count_tokens


def measure_sampling(config: DictConfig) -> list[Row]:
    """Measure each engine on the same prompts, all in one process."""
    work = Workload.load(config)
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(work.sampler(config.engines[name])) for name in config.arms if name not in PEERS
        }

        def turn(name: str, number: int) -> Row:
            meter, batch = Meter(), work.batch(number)
            with meter.phase("sample"):
                rollouts = work.sample(engines[name], batch.prompts, number)
            return meter.row() | count_tokens([len(p.token_ids) for p in batch.prompts], rollouts.lengths.tolist())

        arms = {name: partial(turn, name) for name in engines}
        rows = alternate(arms, rounds=config.rounds, warmup=config.warmup)
    return [{**row, "tokens_per_s": row["completion_tokens"] / row["sample_s"]} for row in rows]


def tabulate_sampling(rows: Sequence[Row], peaks: dict[str, float]) -> pd.DataFrame:
    """Return a table of each engine's tokens per second, and their ratio to the first engine's."""
    middle, baseline = take_medians(rows), rows[0]["arm"]
    return pd.DataFrame(
        [
            {
                "engine": arm,
                "tokens": f"{values.completion_tokens:.0f}",
                "seconds": f"{values.sample_s:.2f}",
                "tokens/s": f"{values.tokens_per_s:.0f}",
                f"times {baseline}": format_paired_ratio(rows, "tokens_per_s", arm, baseline),
            }
            for arm, values in middle.iterrows()
        ]
    )
