"""The parts of the benchmark: what each measures, as rows, and the table that says it.

A table is a function of the rows alone, which is how it can be made again from measurements.json.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lens.benchmarking.measuring import (
    Meter,
    Row,
    alternate,
    by_turns,
    in_order,
    medians,
    paired_ratio,
    training_flops,
)
from lens.benchmarking.naive import naive_gradient
from lens.benchmarking.processes import Arm, serve_lens
from lens.benchmarking.scaling import measure_scaling, tabulate_scaling
from lens.benchmarking.trl import check_trl, serve_trl
from lens.benchmarking.workload import Workload, count_tokens, every_answer_teaches, made_up_rollouts
from lens.errors import ConfigError
from lens.experience import Experience, weigh
from lens.objectives.groups import group_kinds
from lens.policy import check_layers

log = logging.getLogger(__name__)

ADVANTAGE_CALLS = 20  # a call takes a millisecond or less


class Part(NamedTuple):
    """title of the table; measure(config) -> rows; table(rows, peaks in FLOP/s) -> what is printed."""

    title: str
    measure: Callable[[DictConfig], list[Row]]
    table: Callable[[Sequence[Row], dict[str, float]], pd.DataFrame]


def measure_sampling(config: DictConfig) -> list[Row]:
    """Completions of the same prompts from each engine, in one process."""
    work = Workload.load(config)
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(work.sampler(config.engines[name])) for name in config.arms if name != "trl"
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
    """Tokens per second of each engine, and how many times the first one's."""
    middle, baseline = medians(rows), rows[0]["arm"]
    return pd.DataFrame(
        [
            {
                "engine": arm,
                "tokens": f"{values.completion_tokens:.0f}",
                "seconds": f"{values.sample_s:.2f}",
                "tokens/s": f"{values.tokens_per_s:.0f}",
                f"times {baseline}": paired_ratio(rows, "tokens_per_s", arm, baseline),
            }
            for arm, values in middle.iterrows()
        ]
    )


def measure_step(config: DictConfig) -> list[Row]:
    """Whole steps of GRPO, each arm in a process of its own."""
    if "trl" in config.arms:
        check_trl(config)
    with ExitStack() as stack:
        arms = {}
        for name in config.arms:
            served = (serve_trl, config) if name == "trl" else (serve_lens, config, name)
            arm = Arm(name, *served)
            stack.callback(arm.close)
            arm.receive()  # it is ready: others are not started, or measured, beside it
            arms["trl" if name == "trl" else f"lens, {name}"] = arm
        return alternate(arms, rounds=config.rounds, warmup=config.warmup)


def tabulate_step(rows: Sequence[Row], peaks: dict[str, float]) -> pd.DataFrame:
    """Seconds of a step and of its phases, and how many of a step TRL's (else the first arm's) takes."""
    rows = [{**row, "tokens_per_s": row["completion_tokens"] / row["step_s"]} for row in rows]
    middle = medians(rows)
    other = "trl" if "trl" in middle.index else middle.index[0]
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
                "update's share of bf16 peak": share(values.update_flops / values.update_s, peaks),
                f"{other} / arm": paired_ratio(rows, "step_s", other, arm),
            }
            for arm, values in middle.iterrows()
        ]
    )


def measure_update(config: DictConfig) -> list[Row]:
    """The update of lens, and a naive one, on the same completions; compiled; and where some groups teach nothing."""
    work = Workload.load(config)
    batch = every_answer_teaches(made_up_rollouts(work, shortest_share=config.made_up.shortest_share))
    silent = round(config.made_up.silent_share * len(batch.advantages))
    quiet = replace(batch, advantages=batch.advantages * (torch.arange(len(batch.advantages)) >= silent)[:, None])
    naive = partial(naive_gradient, work.model, batch, work.loss, sequences=config.naive.sequences)
    r = batch.rollouts
    each = [len(r.prompts[row // r.num_generations].token_ids) for row in range(len(r.lengths))]
    alone = [(prompt, [length]) for prompt, length in zip(each, r.lengths.tolist(), strict=True)]

    def turn(experience: Experience | None, number: int, **choices: bool) -> Row:
        meter = Meter()
        with meter.phase("update"):
            work.update(naive) if experience is None else work.learn(experience, **choices)
        flops = training_flops(work.model, alone if experience is None else work.sequences(experience))
        return meter.row() | {"update_flops": flops}

    arms = {
        "naive": partial(turn, None),
        "lens": partial(turn, batch, torch_compile=False),
        f"lens, {silent} of {len(batch.advantages)} groups with advantage 0": partial(turn, quiet, torch_compile=False),
    }
    try:
        check_layers(work.model, gradient_checkpointing=False, torch_compile=True)
    except ConfigError as error:
        log.warning("Left out, lens with torch.compile: %s", error)
    else:
        arms["lens, torch.compile"] = partial(turn, batch, torch_compile=True)
    return alternate(arms, rounds=config.rounds, warmup=config.warmup)


def tabulate_update(rows: Sequence[Row], peaks: dict[str, float]) -> pd.DataFrame:
    """Seconds of an update, and how many of it the naive one takes."""
    return pd.DataFrame(
        [
            {
                "update": arm,
                "seconds": f"{values.update_s:.2f}",
                "naive / this": paired_ratio(rows, "update_s", "naive", arm),
                "model TFLOP": f"{values.update_flops / 1e12:.3g}",
                "share of bf16 peak": share(values.update_flops / values.update_s, peaks),
                "GiB above weights": f"{values.update_gib:.2f}",
            }
            for arm, values in medians(rows).iterrows()
        ]
    )


def measure_objective(config: DictConfig) -> list[Row]:
    """Each objective on the same graded answers: what its advantages cost, and what it passes through the model."""
    work, rows = Workload.load(config), []
    objectives = {name: instantiate(settings) for name, settings in config.objectives.items()}
    with instantiate(config.grader) as grader, work.sampler(config.engines[config.arms[0]]) as sampler:
        for number in range(config.warmup + config.rounds):
            meter, batch = Meter(), work.batch(number)
            with meter.phase("sample"):
                rollouts = work.sample(sampler, batch.prompts, number)
            with meter.phase("grade"):
                verdicts = work.grade(grader, rollouts, batch.answers)
            with meter.phase("logprobs"):
                recomputed = work.old_logprobs(rollouts)
            shared = meter.row() | {"shared_s": sum(meter.seconds.values())}
            for name in by_turns(list(objectives), number):
                own = Meter()
                experience = weigh(
                    rollouts,
                    [None] * len(batch.prompts),
                    verdicts,
                    objectives[name],
                    trainer_logprobs=recomputed,
                    old_from=work.settings.old_logprobs,
                )
                arguments = experience.correct, experience.confidence
                options = {"lengths": rollouts.lengths.view_as(experience.correct), "valid": experience.valid}
                started = time.perf_counter()
                for _ in range(ADVANTAGE_CALLS):
                    objectives[name](*arguments, **options)
                advantages = (time.perf_counter() - started) / ADVANTAGE_CALLS
                with own.phase("update"):
                    seen = work.learn(experience)
                if number < config.warmup:
                    continue
                step = shared["shared_s"] + advantages + own.seconds["update"]
                rows.append(
                    {"arm": name, "round": number - config.warmup}
                    | shared
                    | own.row()
                    | {
                        "advantages_s": advantages,
                        "step_s": step,
                        "groups_negative": int(group_kinds(*arguments[:1], experience.valid).negative.sum()),
                        "completions_trained": int(seen["completions/trained"]),
                        "tokens_trained": int(seen["tokens/trained"]),
                    }
                )
    return in_order(rows, list(objectives))


def tabulate_objective(rows: Sequence[Row], peaks: dict[str, float]) -> pd.DataFrame:
    """Means over rounds, as the passes of a step depend on its answers: advantages, passes, seconds."""
    mean = pd.DataFrame(rows).groupby("arm", sort=False).mean(numeric_only=True)
    tokens = [f"{1000 * v.update_s / v.tokens_trained:.2f}" if v.tokens_trained else "-" for _, v in mean.iterrows()]
    return pd.DataFrame(
        [
            {
                "objective": arm,
                "advantages ms": f"{1000 * values.advantages_s:.3f}",
                "of the step": f"{100 * values.advantages_s / values.step_s:.4f} %",
                "negative groups": f"{values.groups_negative:.1f}",
                "completions trained": f"{values.completions_trained:.1f}",
                "tokens trained": f"{values.tokens_trained:.0f}",
                "update s": f"{values.update_s:.2f}",
                "step s": f"{values.step_s:.2f}",
                "update s / 1000 tokens trained": per_token,
            }
            for (arm, values), per_token in zip(mean.iterrows(), tokens, strict=True)
        ]
    )


def share(flops_per_s: float, peaks: dict[str, float]) -> str:
    """In percent of the machine's bfloat16 peak."""
    return f"{100 * flops_per_s / peaks['bfloat16']:.1f} %"


PARTS = {
    "sampling": Part("Rollout engines on the same prompts: medians", measure_sampling, tabulate_sampling),
    "step": Part("One step of GRPO: medians, in seconds", measure_step, tabulate_step),
    "update": Part("One update: medians", measure_update, tabulate_update),
    "scaling": Part("A step of other sizes: medians, in seconds", measure_scaling, tabulate_scaling),
    "objective": Part("What an objective costs: means", measure_objective, tabulate_objective),
}
