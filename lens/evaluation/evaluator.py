"""Samples and grades answers to every evaluation set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from datasets import Dataset

from lens.errors import ConfigError
from lens.evaluation.scores import count_per_problem
from lens.grading.pool import Grader, grade_groups
from lens.problems.prompts import Prompt
from lens.sampling.rollouts import Rollouts, Sampler
from lens.seeding import derive_seed


@dataclass(frozen=True)
class EvaluationSet:
    """Problems to be evaluated on, as the model reads them.

    Attributes:
        name: the name in metrics, eval/<name>/pass@k.
        problems: the rows, in the problem schema.
        prompts: their prompts, in the same order.
        too_long: problems that were left out because their prompt is over the limit.
    """

    name: str
    problems: Dataset
    prompts: Sequence[Prompt]
    too_long: int = 0


@dataclass(frozen=True)
class Evaluator:
    """Samples and grades every evaluation set, with the same code during training and after.

    Attributes:
        sets: what to evaluate on.
        num_samples: answers a problem.
        temperature: of sampling; 0 is greedy.
        top_p: nucleus mass.
        max_completion_length: tokens an answer may have.
        by_level: report by level too.
        every: updates between two evaluations in training; 0: before and after it alone.
    """

    sets: Sequence[EvaluationSet]
    num_samples: int
    temperature: float
    top_p: float
    max_completion_length: int
    by_level: bool
    every: int = 0

    def __post_init__(self):
        if self.num_samples < 1:
            raise ConfigError("evaluation.num_samples", self.num_samples, "an integer >= 1")
        if self.temperature == 0 and self.num_samples > 1:
            raise ConfigError("evaluation.num_samples", self.num_samples, "1, as evaluation.temperature=0 is greedy")

    def evaluate(
        self, sampler: Sampler, grader: Grader, seed: int, *, show_progress: bool = False
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """A row per problem (see `tally`) and a row per answer, problem after problem."""
        frames = []
        for evaluation_set in self.sets:
            rollouts = sampler.sample(
                evaluation_set.prompts,
                self.num_samples,
                derive_seed(seed, evaluation_set.name),
                max_completion_length=self.max_completion_length,
                temperature=self.temperature,
                top_p=self.top_p,
                progress=f"evaluation on {evaluation_set.name}" if show_progress else None,
            )
            verdicts = grade_groups(grader, rollouts.texts, evaluation_set.problems["answer"], self.num_samples)
            frames.append(make_frame(evaluation_set, rollouts, verdicts))
        answers = pd.concat(frames, ignore_index=True)
        return count_per_problem(answers), answers


def make_frame(evaluation_set: EvaluationSet, rollouts: Rollouts, verdicts: Sequence[str]) -> pd.DataFrame:
    """A row per answer: its problem, its text, the gold answer, the verdict."""
    problems, samples = evaluation_set.problems, rollouts.num_generations
    of_problem = {
        name: [value for value in problems[name] for _ in range(samples)]
        for name in ("id", "level", "subject", "answer")
    }
    return pd.DataFrame(
        {
            "set": evaluation_set.name,
            **of_problem,
            "sample": list(range(samples)) * len(problems),
            "text": rollouts.texts,
            "verdict": verdicts,
            "length": rollouts.lengths.numpy(),
            "finish_reason": rollouts.finish_reasons,
            "confidence": rollouts.confidence.numpy(),
        }
    ).astype({"level": "Int64"})
