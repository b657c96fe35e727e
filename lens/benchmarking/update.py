"""Measures the update of lens beside a naive update."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from lens.benchmarking.measuring import alternate, count_training_flops, format_paired_ratio, format_share, take_medians
from lens.benchmarking.meter import Meter, Row
from lens.benchmarking.naive_update import naive_gradient
from lens.benchmarking.trl import check_trl, open_trl_update
from lens.benchmarking.workload import Workload, make_every_answer_teach, make_up_rollouts
from lens.errors import ConfigError
from lens.models.layers import check_layers
from lens.training.experience import Experience

log = logging.getLogger(__name__)


def measure_update(config: DictConfig) -> list[Row]:
    """Measure updates on the same completions: naive, of lens, of lens compiled, with silent groups, and TRL's.

    All advantages of a silent group are 0.
    """
    work = Workload.load(config)
    with ExitStack() as stack:
        try:
            check_trl(config)
        except ConfigError as error:
            log.warning("Leaving out TRL's update: %s", error)
            return measure_arms(work, None)
        return measure_arms(work, stack.enter_context(open_trl_update(work)))


def measure_arms(work: Workload, trl_gradient: Callable[[Experience], None] | None) -> list[Row]:
    """Let the updates of `measure_update` take turns; ``trl_gradient`` is from `open_trl_update`."""
    config = work.config
    batch = make_every_answer_teach(make_up_rollouts(work, shortest_share=config.made_up.shortest_share))
    silent = round(config.made_up.silent_share * len(batch.advantages))
    quiet = replace(batch, advantages=batch.advantages * (torch.arange(len(batch.advantages)) >= silent)[:, None])
    naive = partial(naive_gradient, work.model, batch, work.loss, work.forward_pass, sequences=config.naive.sequences)
    r = batch.rollouts
    each = [len(r.prompts[row // r.num_generations].token_ids) for row in range(len(r.lengths))]
    alone = [(prompt, [length]) for prompt, length in zip(each, r.lengths.tolist(), strict=True)]

    def turn(experience: Experience, number: int, **choices: bool) -> Row:
        meter = Meter()
        with meter.phase("update"):
            work.learn(experience, **choices)
        return meter.row() | work.count_flops(experience)

    def turn_of_other(gradient: Callable[[], None], number: int) -> Row:
        meter = Meter()
        with meter.phase("update"):
            work.update(gradient)
        return meter.row() | count_training_flops(work.model, alone, body=work.products, head=work.products)

    arms = {
        "naive": partial(turn_of_other, naive),
        "lens": partial(turn, batch, torch_compile=False),
        f"lens, {silent} of {len(batch.advantages)} groups with advantage 0": partial(turn, quiet, torch_compile=False),
    }
    if trl_gradient is not None:
        arms["TRL"] = partial(turn_of_other, partial(trl_gradient, batch))
    try:
        check_layers(work.model, OmegaConf.create({"gradient_checkpointing": False, "torch_compile": True}))
    except ConfigError as error:
        log.warning("Leaving out lens with torch.compile: %s", error)
    else:
        arms["lens, torch.compile"] = partial(turn, batch, torch_compile=True)
    return alternate(arms, rounds=config.rounds, warmup=config.warmup)


def tabulate_update(rows: Sequence[Row], peaks: dict[str, float]) -> pd.DataFrame:
    """Return a table of the seconds of each update, and of the naive update's and TRL's time as multiples of it."""
    middle = take_medians(rows)
    others = [name for name in ("naive", "TRL") if name in middle.index]
    return pd.DataFrame(
        [
            {
                "update": arm,
                "seconds": f"{values.update_s:.2f}",
                **{f"{other} / this": format_paired_ratio(rows, "update_s", other, arm) for other in others},
                "model TFLOP": f"{values.update_flops / 1e12:.3g}",
                "share of peak": format_share(values, peaks),
                "GiB above weights": f"{values.update_gib:.2f}",
            }
            for arm, values in middle.iterrows()
        ]
    )
