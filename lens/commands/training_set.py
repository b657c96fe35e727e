"""Encodes the problems of a training run, counts them, and logs the batch plan."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from lens.commands.assembly import count_too_long
from lens.errors import ConfigError
from lens.evaluation.evaluator import Evaluator
from lens.grading.golds import count_failing
from lens.problems.decontamination import drop_ids
from lens.problems.prompts import Prompt, PromptFormat, encode_problems, hash_prompts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSet:
    """Holds the training problems with their prompts, and what was found about them.

    Attributes:
        problems, prompts: the problems and their encoded prompts, in the same order.
        too_long: how many problems were left out because their prompt is over the limit.
        contamination: for each evaluation set, which of its problems are trained on.
    """

    problems: Dataset
    prompts: list[Prompt]
    too_long: int
    contamination: dict[str, dict[str, Any]]

    @classmethod
    def encode(
        cls,
        config: DictConfig,
        problems: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        contamination: dict[str, dict[str, Any]],
    ) -> TrainingSet:
        """Encode the problems as prompts for the model.

        Raises:
            ConfigError: a round asks for more problems than there are.
        """
        encoded = encode_problems(problems, tokenizer, PromptFormat(**config.model.prompt))
        made, asked = cls(*encoded, contamination), config.trainer.rollouts.num_prompts_per_rollout
        if len(made.problems) < asked:
            valid = f"must be at most {len(made.problems)}, the training problems there are"
            raise ConfigError("trainer.rollouts.num_prompts_per_rollout", asked, valid)
        return made

    def counts(self, evaluator: Evaluator, failing: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
        """Return the summary's counts: evaluation problems trained on, failing gold answers, prompts over the limit."""
        return {
            "contamination": {name: drop_ids(found) for name, found in self.contamination.items()},
            "failing_golds": count_failing(failing),
            "prompts_too_long": {"dataset": self.too_long} | count_too_long(evaluator),
        }


def hash_all_prompts(training_set: TrainingSet, evaluator: Evaluator) -> dict[str, dict[str, int]]:
    """Return what `hash_prompts` says of the training problems and of each evaluation set, by their config keys."""
    sets = {"dataset": training_set} | {f"evaluation.sets.{s.name}": s for s in evaluator.sets}
    return {name: hash_prompts(asked.problems, asked.prompts) for name, asked in sets.items()}


def announce_plan(config: DictConfig, training_set: TrainingSet, evaluator: Evaluator) -> None:
    """Log the batch plan: sizes of rounds, updates, epochs and evaluations."""
    t, r = config.trainer, config.trainer.rollouts
    num_problems = len(training_set.problems)
    rounds_per_epoch = num_problems // r.num_prompts_per_rollout
    updates = r.num_prompts_per_rollout // t.num_prompts_per_step
    log.info(
        "Plan: %d problems (%d too long); a round is %d questions x %d answers of at most %d tokens = %d answers; "
        "%d update(s) a round of %d answers each; %d steps an epoch, %d steps = %.2f epochs; "
        "evaluation every %d steps on %d problems x %d samples",
        num_problems,
        training_set.too_long,
        r.num_prompts_per_rollout,
        r.num_generations,
        r.max_completion_length,
        r.num_prompts_per_rollout * r.num_generations,
        updates,
        t.num_prompts_per_step * r.num_generations,
        rounds_per_epoch * updates,
        t.max_steps,
        t.max_steps / (rounds_per_epoch * updates),
        evaluator.every,
        sum(len(s.prompts) for s in evaluator.sets),
        evaluator.num_samples,
    )
