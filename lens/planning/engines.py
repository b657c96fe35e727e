"""Simulates the rollout engines of a plan: lengths of answers, and how long the last engine takes for its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from omegaconf import OmegaConf

from lens.planning.forecast import Plan

ROUNDS = 32  # rounds of drawn lengths; the expected longest answer is the mean over them


def draw_lengths(plan: Plan, stored: np.ndarray | None = None) -> np.ndarray:
    """Draw the tokens of the answers of some rounds, int64 [rounds, questions, G].

    Args:
        plan: its config has the sizes of a round.
        stored: lengths of a run's answers [questions, answers]. A question is drawn, then its answers. None: a
            log-normal distribution with the mean and the spread that the config states, cut at the longest answer.
    """
    config, rollouts = plan.config, plan.config.trainer.rollouts
    shape = ROUNDS, rollouts.num_prompts_per_rollout, rollouts.num_generations
    generator = np.random.default_rng(0)
    if stored is not None:
        rows = generator.integers(len(stored), size=shape[:2])[..., None]
        return stored[rows, generator.integers(stored.shape[1], size=shape)]
    variance = math.log1p(config.length_spread**2)
    drawn = generator.lognormal(math.log(plan.tokens_an_answer) - variance / 2, math.sqrt(variance), shape)
    return np.clip(np.rint(drawn), 1, rollouts.max_completion_length).astype(np.int64)


def count_decoding_steps(lengths: np.ndarray, places: int) -> np.ndarray:
    """Return the decoding steps of engines that start the next answer wherever one has ended, [engines].

    Args:
        lengths: tokens of each engine's answers in their order, [engines, answers].
        places: how many answers an engine decodes at once, at most.
    """
    ends, engines = lengths[:, :places].copy(), np.arange(len(lengths))
    for lasting in lengths[:, places:].T:
        ends[engines, ends.argmin(axis=1)] += lasting
    return ends.max(axis=1)


@dataclass(frozen=True)
class Engines:
    """The rollout engines of a plan. A decoding step reads the weights once, and the cache of each running answer.

    Attributes:
        plan: the plan, on its number of GPUs.
        in_flight: rounds whose answers an engine decodes at once.
        apart: whether its GPUs hold nothing of the update.
    """

    plan: Plan
    in_flight: int = 1
    apart: bool = False

    @property
    def gpus_each(self) -> int:
        return OmegaConf.select(self.plan.config, "sampler.tensor_parallel_size", default=1)

    @property
    def number(self) -> int:
        return self.plan.config.num_gpus // self.gpus_each

    @property
    def places(self) -> int:
        """Return how many answers an engine can decode at once."""
        plan, whole = self.plan, self.plan.mean_prompt + self.plan.tokens_an_answer
        most = plan.engine_share if plan.separate_engine else plan.usable
        room = most - sum(plan.sampling().values()) if self.apart else plan.room_for_cache
        fit = self.gpus_each * room // (plan.cache_a_sequence / plan.longest * whole)
        return min(plan.config.sampler.max_num_seqs, int(fit))

    def seconds(self, steps: np.ndarray | float, cached: np.ndarray | float) -> np.ndarray | float:
        """Return the seconds of so many decoding steps, with so many tokens of cache read in all of them."""
        plan, config = self.plan, self.plan.config
        read = plan.model.parameters * plan.engine_bytes * steps + plan.cache_a_sequence / plan.longest * cached
        return read / (self.gpus_each * config.gpu_bandwidth_gbs * 1e9 * config.generation_utilization)

    def even(self) -> float:
        """Return the seconds of a round if all answers had the mean length, and all engines as many."""
        share, length = self.plan.answers_a_round / self.number, self.plan.tokens_an_answer
        at_once = min(self.places, math.ceil(self.in_flight * share))
        return self.seconds(share * length / at_once, share * length * (self.plan.mean_prompt + length / 2))

    def slowest(self, lengths: np.ndarray) -> float:
        """Return the expected seconds of a round until the last engine is done. Engines take whole questions in turn.

        Args:
            lengths: [rounds, questions, G].
        """
        rounds, questions, answers = lengths.shape
        turns = math.ceil(questions / self.number)
        padded = np.pad(lengths, ((0, 0), (0, turns * self.number - questions), (0, 0)))
        dealt = padded.reshape(rounds, turns, self.number, answers).swapaxes(1, 2)
        dealt = dealt.reshape(rounds * self.number, turns * answers)  # an answer of 0 tokens takes nothing
        cached = (dealt * (self.plan.mean_prompt + dealt / 2)).sum(axis=1)
        ends = self.seconds(count_decoding_steps(dealt, self.places), cached)
        return float(ends.reshape(rounds, -1).max(axis=1).mean())
