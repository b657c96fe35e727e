"""Measures what LENS costs beyond GRPO."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig

from lens.benchmarking.measuring import rotate_names, sort_rows
from lens.benchmarking.meter import Meter, Row
from lens.benchmarking.workload import Workload
from lens.objectives.groups import group_kinds
from lens.objectives.inputs import call_by_name
from lens.training.experience import make_experience

ADVANTAGE_CALLS = 20  # a call takes a millisecond or less


def measure_objective(config: DictConfig) -> list[Row]:
    """Run each objective on the same graded answers; measure its advantages and the update that they lead to.

    Objectives differ in how many completions have an advantage, so in how much the update passes through the model.
    """
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
            for name in rotate_names(list(objectives), number):
                own = Meter()
                experience = make_experience(
                    rollouts,
                    [None] * len(batch.prompts),
                    verdicts,
                    objectives[name],
                    trainer_logprobs=recomputed,
                    old_from=work.rollouts.old_logprobs,
                )
                known = experience.inputs(max_completion_length=work.rollouts.max_completion_length)
                started = time.perf_counter()
                for _ in range(ADVANTAGE_CALLS):
                    call_by_name(objectives[name], known)
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
                        "groups_negative": int(group_kinds(experience.correct, experience.valid).negative.sum()),
                        "completions_trained": int(seen["completions/trained"]),
                        "tokens_trained": int(seen["tokens/trained"]),
                    }
                )
    return sort_rows(rows, list(objectives))


def tabulate_objective(rows: Sequence[Row], peaks: dict[str, float]) -> pd.DataFrame:
    """Return a table of means over rounds: cost of the advantages, completions and tokens trained, seconds.

    It takes means, not medians, because the work of a step depends on its answers.
    """
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
