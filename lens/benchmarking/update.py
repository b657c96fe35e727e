"""Measures the update of lens beside a naive update."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    with open_trl_where_it_is(work) as trl_gradient:
        return measure_arms(work, trl_gradient)


@contextmanager
def open_trl_where_it_is(work: Workload) -> Iterator[Callable[[Experience], None] | None]:
    """Yield what `open_trl_update` yields; None where TRL is not at hand or cannot do this work, with a warning."""
    try:
        check_trl(work.config)
    except ConfigError as error:
        log.warning("Leaving out TRL's update: %s", error)
        yield None
        return
    with open_trl_update(work) as gradient:
        yield gradient


def measure_lens(work: Workload, experience: Experience, number: int, **choices: bool) -> Row:
    """Measure an update of lens; ``choices`` replace fields of its forward pass."""
    meter = Meter()
    with meter.phase("update"):
        work.learn(experience, **choices)
    return meter.row() | work.count_flops(experience)


def measure_other(work: Workload, experience: Experience, gradient: Callable[[Experience], None], number: int) -> Row:
    """Measure an update that takes its gradient from elsewhere, with each completion behind its own prompt."""
    meter, r = Meter(), experience.rollouts
    with meter.phase("update"):
        work.update(lambda: gradient(experience))
    prompts = [len(prompt.token_ids) for prompt in r.prompts for _ in range(r.num_generations)]
    passes = ((prompt, [length]) for prompt, length in zip(prompts, r.lengths.tolist(), strict=True))
    return meter.row() | count_training_flops(work.model, passes, body=work.products, head=work.products)


def measure_arms(work: Workload, trl_gradient: Callable[[Experience], None] | None) -> list[Row]:
    """Let the updates of `measure_update` take turns; ``trl_gradient`` is from `open_trl_update`."""
    config = work.config
    batch = make_every_answer_teach(make_up_rollouts(work, shortest_share=config.made_up.shortest_share))
    silent = round(config.made_up.silent_share * len(batch.advantages))
    quiet = replace(batch, advantages=batch.advantages * (torch.arange(len(batch.advantages)) >= silent)[:, None])

    def naive(experience: Experience) -> None:
        naive_gradient(work.model, experience, work.loss, work.forward_pass, sequences=config.naive.sequences)

    plain = partial(measure_lens, torch_compile=False)
    arms = {
        "naive": partial(measure_other, work, batch, naive),
        "lens": partial(plain, work, batch),
        f"lens, {silent} of {len(batch.advantages)} groups with advantage 0": partial(plain, work, quiet),
    }
    if trl_gradient is not None:
        arms["TRL"] = partial(measure_other, work, batch, trl_gradient)
    try:
        check_layers(work.model, OmegaConf.create({"gradient_checkpointing": False, "torch_compile": True}))
    except ConfigError as error:
        log.warning("Leaving out lens with torch.compile: %s", error)
    else:
        arms["lens, torch.compile"] = partial(measure_lens, work, batch, torch_compile=True)
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
