"""Simulates a step on other numbers of GPUs: what divides, what waits for the longest answer, and what stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from omegaconf import OmegaConf

from lens.config.checks import check_shard_degree
from lens.errors import ConfigError
from lens.planning.communication import GB, Communication
from lens.planning.engines import Engines, draw_lengths
from lens.planning.forecast import Plan

SPLITS = 8  # asynchronous samplers get one to seven eighths of the GPUs
TOKEN_BYTES = 8 + 4  # of a sampled token that all processes get: its id and its log-probability
RATED_BYTES = 4 + 4  # of a token that the policy rates again: its log-probability and its entropy


@dataclass(frozen=True)
class Costs:
    """What a step costs beside the roofline of the plan.

    Attributes:
        grading: seconds of a core for an answer.
        handling: seconds that every process spends on each answer of all processes, beside sampling and update.
        fixed: seconds of a step that nothing divides.
        sampling, update: measured seconds over those of the roofline.
    """

    grading: float
    handling: float
    fixed: float = 0.0
    sampling: float = 1.0
    update: float = 1.0

    @classmethod
    def assumed(cls, plan: Plan) -> Costs:
        """Return the costs that a plan's config states."""
        return cls(plan.config.grading_ms / 1000, plan.config.handling_ms / 1000)


@dataclass(frozen=True)
class Step:
    """Seconds of a step by phase. One phase follows the other, and no exchange overlaps with computation.

    Attributes:
        sampling: if all answers had the mean length, and all engines as many of them.
        longest_answer: what the engine that is last takes beyond that.
        grading: of the verdicts.
        update: log-probabilities and gradient, if all GPUs had as many tokens.
        largest_share: what the GPU with most tokens takes beyond that.
        exchange: weights, gradients and rollouts on their links.
        serial: what every process does for all answers, and checkpoints.
    """

    sampling: float
    longest_answer: float
    grading: float
    update: float
    largest_share: float
    exchange: float
    serial: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())

    @property
    def dominant(self) -> str:
        """Return the name of the phase that takes longest."""
        phases = asdict(self)
        return max(phases, key=phases.__getitem__).replace("_", " ")


def resize(plan: Plan, num_gpus: int, times: int = 1) -> Plan:
    """Return the plan on another number of GPUs, with so many times the questions.

    GPUs that do not form whole copies of the model by the config's shard degree share one.
    """
    trainer, degree = plan.config.trainer, plan.config.trainer.memory.data_parallel_shard_degree
    changed = {
        "num_prompts_per_step": times * trainer.num_prompts_per_step,
        "rollouts": {"num_prompts_per_rollout": times * trainer.rollouts.num_prompts_per_rollout},
        "memory": {"data_parallel_shard_degree": None if degree and num_gpus % degree else degree},
    }
    return replace(plan, config=OmegaConf.merge(plan.config, {"num_gpus": num_gpus, "trainer": changed}))


def largest_share(tokens: np.ndarray, num_gpus: int) -> float:
    """Return the expected tokens of the GPU that has most, over the mean: an answer is never divided.

    Args:
        tokens: of the sequences of each round, [rounds, sequences].
        num_gpus: GPUs that share them.
    """
    mean = tokens.sum(axis=1) / num_gpus
    return float(np.maximum(mean, tokens.max(axis=1)).mean() / mean.mean())


def draws_a_step(plan: Plan) -> float:
    """Return how many times as many answers as a round has are sampled for a step; a filter asks for more."""
    return (1 if plan.config.get("filter_groups") is None else 1 / plan.config.kept_share) / plan.updates_a_round


def simulate_grading(plan: Plan, costs: Costs) -> float:
    """Return the seconds of a step's grading. Every process has workers of its own."""
    answers = plan.answers_a_round * draws_a_step(plan)
    return costs.grading * answers / plan.config.num_gpus / plan.config.grader.num_workers


def simulate_update(plan: Plan, lengths: np.ndarray, costs: Costs) -> dict[str, float]:
    """Return the seconds of a step that are not sampling or grading, by the fields of `Step`."""
    config, answers = plan.config, plan.answers_a_round * draws_a_step(plan)
    whole = (lengths + plan.mean_prompt).reshape(len(lengths), -1)
    trained = math.ceil(whole.shape[1] / plan.updates_a_round * config.trained_share)
    passed = {"log-probabilities": whole, "updates": whole[:, :trained]}
    hours, steps = plan.hours(), plan.rounds * plan.updates_a_round
    even = {name: costs.update * hours[name][1] * 3600 / steps / config.num_gpus for name in passed}
    more = sum((largest_share(passed[name], config.num_gpus) - 1) * even[name] for name in passed)

    rated = 2 * RATED_BYTES * bool(plan.rating_passes)  # summed over the processes, not only gathered
    longest = float(lengths.max(axis=(1, 2)).mean())
    gathered = answers * longest * (TOKEN_BYTES + rated) * (1 - 1 / config.num_gpus)
    states = sum(size for name, size in plan.states().items() if name != "reference model") * plan.shards
    saving = states / GB / config.disk_gbs / config.trainer.checkpoints.checkpoint_every
    return {
        "update": sum(even.values()),
        "largest_share": more,
        "exchange": Communication(plan, plan.shards).total_seconds() + gathered / GB / config.link_gbs,
        "serial": costs.handling * answers + costs.fixed + saving,
    }


def simulate_step(plan: Plan, lengths: np.ndarray, costs: Costs) -> Step:
    """Return the seconds of a step of a plan.

    Args:
        plan: the plan, on its number of GPUs.
        lengths: tokens of the answers of some rounds, [rounds, questions, G].
        costs: what is beside the roofline.
    """
    engines, times = Engines(plan), costs.sampling * draws_a_step(plan)
    even, slowest = times * engines.even(), times * engines.slowest(lengths)
    rest = simulate_update(plan, lengths, costs)
    return Step(even, slowest - even, simulate_grading(plan, costs), **rest)


def simulate_asynchronous(plan: Plan, lengths: np.ndarray, costs: Costs) -> float | None:
    """Return the seconds of a step if some GPUs sample while the others update, at the best of a few splits.

    Samplers may be ``max_staleness`` rounds ahead. They decode the answers of so many rounds at once, and an answer
    has as long to end; with 1 all wait for the longest answer of each round.

    Returns:
        The seconds; None if no split has room for the update.
    """
    config, ahead, found = plan.config, plan.config.max_staleness, []
    for number in sorted({config.num_gpus * part // SPLITS for part in range(1, SPLITS)} - {0}):
        samplers, others = resize(plan, number), resize(plan, config.num_gpus - number)
        engines = Engines(samplers, ahead, apart=True)
        if others.memory_needed() > others.usable or number % engines.gpus_each:
            continue
        times = costs.sampling * draws_a_step(plan)
        sampled = times * max(engines.even(), engines.slowest(lengths) / ahead) + simulate_grading(samplers, costs)
        found.append(max(sampled, sum(simulate_update(others, lengths, costs).values())))
    return min(found, default=None)


@dataclass(frozen=True)
class Row:
    """A simulated step.

    Attributes:
        scaling: strong, with the questions of the config, or weak, with questions that grow with the GPUs.
        plan: the plan, on its number of GPUs.
        step: its seconds.
        efficiency: questions that a GPU's second gives, over those on the first number of GPUs.
        asynchronous: seconds of a step that samples and updates at the same time; None where it has no room.
    """

    scaling: str
    plan: Plan
    step: Step
    efficiency: float
    asynchronous: float | None


def simulate(plan: Plan, numbers: Sequence[int], costs: Costs, stored: np.ndarray | None = None) -> list[Row]:
    """Simulate a step on each number of GPUs, with strong and with weak scaling.

    Args:
        plan: the plan.
        numbers: GPUs, the fewest first; the others are multiples.
        costs: what is beside the roofline.
        stored: see `draw_lengths`.

    Raises:
        ConfigError: the plan cannot work on the fewest GPUs, or their number does not divide into engines or shards.
    """
    first, rows = numbers[0], []
    for number in numbers:
        check_shard_degree(plan.config, number)
        if number % (gpus := Engines(plan).gpus_each):
            raise ConfigError(
                "sampler.tensor_parallel_size", gpus, f"must be a divisor of {number}, the number of GPUs"
            )
    resize(plan, first).check()
    for scaling in ("strong", "weak"):
        for number in numbers:
            sized = resize(plan, number, number // first if scaling == "weak" else 1)
            lengths = draw_lengths(sized, stored)
            step = simulate_step(sized, lengths, costs)
            rate = sized.config.trainer.num_prompts_per_step / step.total / number
            rows.append(Row(scaling, sized, step, rate, simulate_asynchronous(sized, lengths, costs)))
    return [replace(row, efficiency=row.efficiency / rows[0].efficiency) for row in rows]
