"""Collects a round of experience: choose questions, sample answers, grade them, and compute their advantages."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from datasets import Dataset
from omegaconf import DictConfig
from torch import Tensor

from lens.distributed.stop_signals import StopSignals
from lens.errors import RunFailed
from lens.grading.groups import AnyGrader, grade_groups
from lens.objectives.groups import group_kinds
from lens.objectives.inputs import find_inputs
from lens.problems.prompts import Prompt
from lens.seeding import derive_seed
from lens.training.experience import Experience, make_experience
from lens.training.group_filter import GroupFilter
from lens.training.policy import Policy
from lens.training.stopwatch import Stopwatch
from lens.training.train_state import choose_questions
from lens.training.weight_sync import WeightSync


class Round(NamedTuple):
    """What a round of sampling gave.

    Attributes:
        experience: what the updates learn from.
        draws: how many times questions were sampled; 1 unless groups are filtered.
        tokens: tokens that were sampled, those of dropped groups included.
        dropped: groups that were sampled and are not in the experience.
    """

    experience: Experience
    draws: int
    tokens: int
    dropped: int


@dataclass
class Collector:
    """Collects the experience of a round with the policy's current weights.

    Attributes:
        settings: the config's trainer.rollouts section; configs/trainer/default.yaml explains each key.
        problems, prompts: the training problems, and their prompts in the same order.
        weight_sync: hands out the rollout engine with the policy's current weights.
        grader: judges the answers.
        objective: turns verdicts and confidences into advantages.
        policy: recomputes log-probabilities if the settings or the objective ask for it.
        seed: the run's seed.
        reward_shaping: changes rewards before the objective sees them; None: nothing does.
        group_filter: decides which groups are kept; None: all are.
        thin_out: leaves few answers of a negative group with an advantage; it is called with advantages, which groups
            are negative, and a generator. None: all keep theirs.
    """

    settings: DictConfig
    problems: Dataset
    prompts: Sequence[Prompt]
    weight_sync: WeightSync
    grader: AnyGrader
    objective: Callable[..., Tensor]
    policy: Policy
    seed: int
    reward_shaping: Callable[..., Tensor] | None = None
    group_filter: GroupFilter | None = None
    thin_out: Callable[[Tensor, Tensor, torch.Generator], Tensor] | None = None

    def __post_init__(self):
        self.asked = find_inputs(self.objective)
        self.answers, self.levels = list(self.problems["answer"]), list(self.problems["level"])
        self.golds = dict(zip(self.problems["id"], self.answers, strict=True))

    def epochs(self, rounds: int) -> float:
        """Return how many times so many rounds have asked each problem, on average."""
        return rounds * self.settings.num_prompts_per_rollout / len(self.problems)

    def collect(self, step: int, number: int, stop: StopSignals, stopwatch: Stopwatch) -> Round:
        """Collect a round, sampled after ``step`` updates.

        With a filter, questions are sampled until enough groups are kept. The objective then sees those, all at once.
        Last, negative groups are thinned out.

        Args:
            step: optimizer updates so far; the engine gets new weights only if this has changed.
            number: the draws so far; it decides the questions and the seed.
            stop: lets SIGTERM interrupt sampling, grading and recomputing.
            stopwatch: measures the phases sync, sample, grade and logprobs.

        Raises:
            StopRequested: SIGTERM came before the round was complete.
            RunFailed: too few groups were kept in ``group_filter.max_draws`` draws.
        """
        collected = self._collect(step, number, stop, stopwatch)
        if self.thin_out is None:
            return collected
        experience = collected.experience
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "negative answers", number))
        negative = group_kinds(experience.correct, experience.valid).negative
        advantages = self.thin_out(experience.advantages, negative, generator=generator)
        return collected._replace(experience=replace(experience, advantages=advantages))

    def _collect(self, step: int, number: int, stop: StopSignals, stopwatch: Stopwatch) -> Round:
        """Collect a round, with the advantages of the objective."""
        if self.group_filter is None:
            experience = self._draw(self.objective, step, number, stop, stopwatch)
            return Round(experience, 1, int(experience.rollouts.lengths.sum()), 0)
        wanted, parts, kept, groups, tokens = self.settings.num_prompts_per_rollout, [], 0, 0, 0
        while kept < wanted:
            if len(parts) == self.group_filter.max_draws:
                limit = f"filter_groups.max_draws={len(parts)} draws of {wanted} questions"
                raise RunFailed(
                    f"step {step + 1}: {limit} ({tokens:,} tokens) left {kept} of {groups} groups, not {wanted}"
                )
            with torch.random.fork_rng(devices=[]):
                drawn = self._draw(copy.deepcopy(self.objective), step, number + len(parts), stop, stopwatch)
            keeps = self.group_filter.find_kept(drawn.advantages, drawn.correct, drawn.valid)[: wanted - kept]
            parts.append(drawn.take_questions(keeps))
            kept, groups = kept + len(keeps), groups + len(drawn.levels)
            tokens += int(drawn.rollouts.lengths.sum())
        joined = Experience.join([part for part in parts if len(part.levels)])
        return Round(joined.weigh(self.objective, **self._known(step)), len(parts), tokens, groups - kept)

    def _known(self, step: int) -> dict[str, object]:
        """Return what the objective may ask for beside the experience itself."""
        s = self.settings
        return {"confidence_from": s.confidence, "step": step, "max_completion_length": s.max_completion_length}

    def _draw(
        self, objective: Callable[..., Tensor], step: int, number: int, stop: StopSignals, stopwatch: Stopwatch
    ) -> Experience:
        """Ask the questions of a draw, grade the answers, and weigh them."""
        s, policy = self.settings, self.policy
        questions = choose_questions(len(self.problems), s.num_prompts_per_rollout, self.seed, number)
        with stopwatch.measure("sync"):
            sampler = self.weight_sync.sampler_at(step)
        with stopwatch.measure("sample"), stop.abandonable():
            rollouts = sampler.sample(
                [self.prompts[index] for index in questions],
                s.num_generations,
                derive_seed(self.seed, "round", number),
                max_completion_length=s.max_completion_length,
                temperature=s.temperature,
                top_p=s.top_p,
            )
        with stopwatch.measure("grade"), stop.abandonable():
            answers = [self.answers[index] for index in questions]
            grades = grade_groups(self.grader, rollouts.texts, answers, s.num_generations)
        with stopwatch.measure("logprobs"), stop.abandonable():
            recomputed = "trainer" in (s.old_logprobs, s.confidence) or "entropies" in self.asked
            rate = policy.forward_pass.rate_rollouts
            logprobs, entropies = rate(policy.model, rollouts) if recomputed else (None, None)
            reference = None if policy.reference is None else rate(policy.reference, rollouts)[0]
        return make_experience(
            rollouts,
            [self.levels[index] for index in questions],
            [grade.verdict for grade in grades],
            objective,
            scores=[grade.credit for grade in grades] if self.grader.reward == "score" else None,
            unjudgeable=self.grader.unjudgeable,
            trainer_logprobs=logprobs,
            reference_logprobs=reference,
            entropies=entropies,
            old_from=s.old_logprobs,
            mask_truncated=s.truncated == "mask",
            importance_sampling=s.importance_sampling,
            importance_cap=s.importance_cap,
            reward_shaping=self.reward_shaping,
            **self._known(step),
        )
