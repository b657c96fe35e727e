"""Collects a round of experience: choose questions, sample answers, grade them, and compute their advantages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datasets import Dataset
from omegaconf import DictConfig
from torch import Tensor

from lens.distributed.stop_signals import StopSignals
from lens.grading.groups import AnyGrader, grade_groups
from lens.problems.prompts import Prompt
from lens.seeding import derive_seed
from lens.training.experience import Experience, make_experience
from lens.training.policy import Policy
from lens.training.stopwatch import Stopwatch
from lens.training.train_state import choose_questions
from lens.training.weight_sync import WeightSync


@dataclass
class Collector:
    """Collects the experience of a round with the policy's current weights.

    Attributes:
        settings: the config's trainer.rollouts section; configs/trainer/default.yaml explains each key.
        problems, prompts: the training problems, and their prompts in the same order.
        weight_sync: hands out the rollout engine with the policy's current weights.
        grader: judges the answers.
        objective: turns verdicts and confidences into advantages.
        policy: recomputes log-probabilities if the settings ask for it.
        seed: the run's seed.
    """

    settings: DictConfig
    problems: Dataset
    prompts: Sequence[Prompt]
    weight_sync: WeightSync
    grader: AnyGrader
    objective: Callable[..., Tensor]
    policy: Policy
    seed: int

    def __post_init__(self):
        self.golds = dict(zip(self.problems["id"], self.problems["answer"], strict=True))

    def epochs(self, rounds: int) -> float:
        """Return how many times so many rounds have asked each problem, on average."""
        return rounds * self.settings.num_prompts_per_rollout / len(self.problems)

    def collect(self, step: int, number: int, stop: StopSignals, stopwatch: Stopwatch) -> Experience:
        """Return the experience of round ``number``, sampled after ``step`` updates.

        Args:
            step: optimizer updates so far; the engine gets new weights only if this has changed.
            number: the round; it decides the questions and the seed.
            stop: lets SIGTERM interrupt sampling, grading and recomputing.
            stopwatch: measures the phases sync, sample, grade and logprobs.

        Raises:
            StopRequested: SIGTERM came before the round was complete.
        """
        s, policy = self.settings, self.policy
        questions = choose_questions(len(self.problems), s.num_prompts_per_rollout, self.seed, number)
        problems = self.problems.select(questions)
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
            verdicts = grade_groups(self.grader, rollouts.texts, problems["answer"], s.num_generations)
        with stopwatch.measure("logprobs"), stop.abandonable():
            recomputed = "trainer" in (s.old_logprobs, s.confidence)
            rate = policy.forward_pass.rate_rollouts
            logprobs, entropies = rate(policy.model, rollouts) if recomputed else (None, None)
            reference = None if policy.reference is None else rate(policy.reference, rollouts)[0]
        return make_experience(
            rollouts,
            list(problems["level"]),
            verdicts,
            self.objective,
            unjudgeable=self.grader.unjudgeable,
            trainer_logprobs=logprobs,
            reference_logprobs=reference,
            entropies=entropies,
            old_from=s.old_logprobs,
            confidence_from=s.confidence,
            mask_truncated=s.truncated == "mask",
            importance_sampling=s.importance_sampling,
            importance_cap=s.importance_cap,
        )
