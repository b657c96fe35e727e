"""LENS inside ms-swift 4: a mixin for its GRPOTrainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, cat

from lens.integrations.adapting import warn_of, with_objective
from lens.integrations.groups import group_advantages
from lens.integrations.names import Objective
from lens.objectives.inputs import InputError
from lens.objectives.tokens import token_mean


class LensGRPOTrainer:
    """Goes before swift's GRPOTrainer among the bases of a class. `install` does that."""

    objective: Objective

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        warn_of(
            {
                "--dynamic_sample drops the groups whose rewards are equal, before the objective sees them: no "
                "negative group teaches": self.dynamic_sample,
                "--kl_in_reward has no effect: the objective takes the rewards before the penalty": (
                    self.kl_in_reward and self.beta != 0.0
                ),
                "--num_generations 1: a group of one answer has nothing to be compared with": self.num_generations == 1,
            }
        )

    def _compute_advantages(
        self, samples: list[Any], rewards_per_func: Tensor, batch_encoded_inputs: list[dict[str, Any]]
    ) -> Tensor:
        """Return the objective's advantages of the answers of all processes, float32 [N].

        Args:
            samples: this process's answers.
            rewards_per_func: [N, functions], of all processes; NaN where a function has no reward.
            batch_encoded_inputs: this process's batches; "grpo_batch" of each has masks and log-probabilities [B, T].

        Raises:
            InputError: several requests share a prompt, or the objective weighs tokens.
        """
        if self.dynamic_num_samples:
            raise InputError("requests of several turns (dynamic_num_samples): a group must have num_generations")
        super()._compute_advantages(samples, rewards_per_func, batch_encoded_inputs)  # for its logs
        batches = [encoded["grpo_batch"] for encoded in batch_encoded_inputs]
        means = cat([token_mean(batch.old_per_token_logps, batch.completion_mask.bool()) for batch in batches])
        lengths = cat([batch.completion_mask.sum(dim=1) for batch in batches])
        valid = ~cat([batch.truncated_mask for batch in batches]).bool() | (not self.overlong_filter)
        means, lengths, valid = (self.accelerator.gather(values) for values in (means, lengths, valid))  # [N] each
        rewards = (rewards_per_func * self.reward_weights).nansum(dim=1)
        size = self.num_generations if self.model.training else self.num_generations_eval
        advantages = group_advantages(
            rewards.where(~rewards_per_func.isnan().all(dim=1), torch.nan),
            torch.arange(len(rewards)) // size,  # answers to one question are neighbours
            means,
            lengths,
            valid=valid,
            objective=self.objective,
        )
        if advantages.dim() == 2:
            raise InputError("the objective weighs tokens, and ms-swift takes one advantage an answer")
        return advantages


def install(objective: str | Objective = "lens", **options: Any) -> None:
    """Make ``swift rlhf --rlhf_type grpo`` use an objective. Call it in a file given as ``--external_plugins``.

    Raises:
        InputError: the objective is unknown, or has no such option.
    """
    from swift import rlhf_trainers

    base = rlhf_trainers.GRPOTrainer
    rlhf_trainers.GRPOTrainer = with_objective(LensGRPOTrainer, base, objective, options)
