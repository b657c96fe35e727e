"""LENS inside ms-swift 4: a mixin for its GRPOTrainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, cat

from lens.integrations.adapting import warn_of, with_objective
from lens.integrations.groups import CORRECT_ABOVE, fixed_seed, group_advantages, try_objective
from lens.integrations.names import Objective
from lens.objectives.inputs import InputError
from lens.objectives.tokens import token_mean

# What warnings advise.
KEYS = {
    "correct": "Give a reward function of verdicts, and name it: install(…, verdict=NAME)",
    "group_ids": "--num_generations must be above 1",
}


class LensGRPOTrainer:
    """Goes before swift's GRPOTrainer among the bases of a class. `install` does that."""

    objective: Objective
    verdict: str | None = None  # the name of the reward function that says what is correct

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names, mode = self.reward_func_names, self.rollout_importance_sampling_mode
        if self.verdict is not None and self.verdict not in names:
            raise InputError(f"verdict={self.verdict!r}: one of the reward functions {', '.join(names)}")
        self.of_verdict = names.index(self.verdict) if self.verdict is not None else 0
        try_objective(self.objective, max(2, self.num_generations))
        warn_of(
            {
                f"verdict=None: of the reward functions {', '.join(names)} the first says what is correct": (
                    self.verdict is None and len(names) > 1
                ),
                f"--rollout_importance_sampling_mode {mode} takes answers or tokens out of the loss after their group "
                "was weighed; token_truncate keeps them": (mode or "").endswith("_mask"),
                "--off_policy_sequence_mask_delta takes wrong answers out of the loss, and no right ones": (
                    self.off_policy_sequence_mask_delta is not None
                ),
                f"--delta {self.args.delta} stops pushing a wrong answer down where its ratio is above that": (
                    self.args.delta is not None
                ),
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
        verdicts = rewards_per_func[:, self.of_verdict]
        several = rewards_per_func.shape[1] > 1
        rewards = (rewards_per_func * self.reward_weights).nansum(dim=1) if several else verdicts
        size = self.num_generations if self.model.training else self.num_generations_eval
        with fixed_seed(self.args.seed + self.state.global_step, rewards.device):  # the same in all processes
            advantages = group_advantages(
                rewards.where(~verdicts.isnan(), torch.nan),
                torch.arange(len(rewards)) // size,  # answers to one question are neighbours
                means,
                lengths,
                correct=verdicts > CORRECT_ABOVE if several else None,
                valid=valid,
                objective=self.objective,
                keys=KEYS,
            )
        if advantages.dim() == 2:
            raise InputError("the objective weighs tokens, and ms-swift takes one advantage an answer")
        return advantages


def install(objective: str | Objective = "lens", *, verdict: str | None = None, **options: Any) -> None:
    """Make ``swift rlhf --rlhf_type grpo`` use an objective. Call it in a file given as ``--external_plugins``.

    Args:
        objective, options: as in `make_objective`.
        verdict: the name of the reward function whose reward above 0.5 makes an answer correct. None: the first.

    Raises:
        InputError: the objective is unknown, or has no such option.
    """
    from swift import rlhf_trainers

    base = rlhf_trainers.GRPOTrainer
    rlhf_trainers.GRPOTrainer = with_objective(LensGRPOTrainer, base, objective, options, verdict=verdict)
