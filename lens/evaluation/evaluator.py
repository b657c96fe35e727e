"""Samples and grades answers to every evaluation set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from datasets import Dataset

from lens.errors import ConfigError
from lens.evaluation.scores import count_per_problem
from lens.grading.groups import AnyGrader, grade_groups
from lens.grading.pool import Grade
from lens.problems.prompts import Prompt
from lens.sampling.rollouts import Rollouts, Sampler
from lens.seeding import derive_seed


@dataclass(frozen=True)
class EvaluationSet:
    """The problems of one evaluation set, with their prompts.

    Attributes:
        name: its name in metrics, as in eval/<name>/pass@k.
        problems: a row per problem, in the problem schema.
        prompts: their prompts, in the same order.
        too_long: number of problems that were left out because their prompt is over the limit.
    """

    name: str
    problems: Dataset
    prompts: Sequence[Prompt]
    too_long: int = 0


@dataclass(frozen=True)
class Evaluator:
    """Samples and grades answers to every evaluation set, with the same code during training and after.

    Attributes:
        sets: the evaluation sets.
        num_samples: answers per problem.
        temperature: sampling temperature; 0 is greedy.
        top_p: nucleus mass; 1 keeps all tokens.
        max_completion_length: tokens after which an answer is cut.
        by_level: report by level too.
        every: updates between two evaluations in training. 0: only before and after training.

    Raises:
        ConfigError: num_samples is below 1, or above 1 at temperature 0.
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
            raise ConfigError("evaluation.num_samples", self.num_samples, "must be an integer >= 1")
        if self.temperature == 0 and self.num_samples > 1:
            valid = "must be 1, as evaluation.temperature=0 is greedy"
            raise ConfigError("evaluation.num_samples", self.num_samples, valid)

    def evaluate(
        self, sampler: Sampler, grader: AnyGrader, seed: int, *, show_progress: bool = False
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Sample and grade all sets.

        Returns:
            A frame with a row per problem (see `count_per_problem`), and one with a row per answer (see `make_frame`),
            problem after problem.
        """
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
            grades = grade_groups(grader, rollouts.texts, evaluation_set.problems["answer"], self.num_samples)
            frames.append(make_frame(evaluation_set, rollouts, grades))
        answers = pd.concat(frames, ignore_index=True)
        return count_per_problem(answers), answers


def make_frame(evaluation_set: EvaluationSet, rollouts: Rollouts, grades: Sequence[Grade]) -> pd.DataFrame:
    """Return a row per answer, with its problem, text, gold answer, verdict and score (null: it has none)."""
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
            "verdict": [grade.verdict for grade in grades],
            "score": [grade.score for grade in grades],
            "length": rollouts.lengths.numpy(),
            "finish_reason": rollouts.finish_reasons,
            "confidence": rollouts.confidence.numpy(),
        }
    ).astype({"level": "Int64", "score": "Float64"})
