"""LENS inside SkyRL 0.3: a mixin for its trainer. Its registry of estimators hands over no log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lens.integrations.adapting import per_token, warn_of, with_objective
from lens.integrations.groups import group_advantages, try_objective
from lens.integrations.names import Objective
from lens.objectives.inputs import InputError


class LensTrainer:
    """Goes before RayPPOTrainer among the bases of a class. `make_trainer_class` does that."""

    objective: Objective

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        algorithm, size = self.cfg.trainer.algorithm, self.cfg.generator.n_samples_per_prompt
        try_objective(self.objective, max(2, size))
        masked = algorithm.off_policy_correction.sequence_mask_metric
        warn_of(
            {
                f"trainer.algorithm.dynamic_sampling.type={algorithm.dynamic_sampling.type} drops the groups whose "
                "rewards are equal: no negative group teaches. null keeps them": (
                    algorithm.dynamic_sampling.type is not None
                ),
                f"trainer.algorithm.off_policy_correction.sequence_mask_metric={masked} takes whole answers out of the "
                "loss, the long ones above all": masked is not None,
                "trainer.algorithm.policy_loss_type=dual_clip holds back wrong answers whose probability has risen, "
                "which the objectives' papers do not have. regular does not": algorithm.policy_loss_type == "dual_clip",
                "trainer.algorithm.zero_variance_filter=true drops the groups whose rewards are equal: no negative "
                "group teaches": algorithm.zero_variance_filter,
                "trainer.algorithm.use_kl_in_reward=true takes a penalty off the rewards, which are then no verdicts. "
                "trainer.algorithm.use_kl_loss=true leaves them alone": algorithm.use_kl_in_reward,
                "generator.n_samples_per_prompt=1: a group of one answer has nothing to be compared with": size == 1,
            }
        )

    def compute_advantages_and_returns(self, data: Any) -> Any:
        """Return the batch with the objective's advantages, also as returns, float32 [B, T].

        Of a trajectory of several steps, the last step's reward and log-probabilities stand for all.

        Raises:
            InputError: the objective needs log-probabilities that the batch lacks, or weighs tokens of trajectories of
                several steps.
        """
        data = super().compute_advantages_and_returns(data)
        rewards, uids = data["rewards"].sum(dim=-1), data.metadata["uids"]
        logprobs = data["action_log_probs"] if data.get("action_log_probs") is not None else data["rollout_logprobs"]
        is_last = torch.tensor(data.metadata.get("is_last_step") or [True] * len(rewards))
        final = last_steps(is_last)  # [B]
        advantages = group_advantages(
            rewards,
            list(uids),
            mask=data["loss_mask"],  # what the policy sampled; all 0 for padding and for answers that are filtered
            logprobs=logprobs,
            valid=is_last,
            objective=self.objective,
            keys={"group_ids": "generator.n_samples_per_prompt must be above 1"},
        )
        if advantages.dim() == 2 and not is_last.all():
            raise InputError("the objective weighs tokens, which trajectories of several steps lack")
        data["advantages"] = per_token(advantages[final], data["response_mask"])
        data["returns"] = data["advantages"].clone()
        return data


def last_steps(is_last: Tensor) -> Tensor:
    """Return for each step, bool [B], the row of the last step of its trajectory, int64 [B]."""
    trajectory = is_last.long().cumsum(dim=0) - is_last.long()  # [B]
    return is_last.nonzero()[:, 0][trajectory]


def make_trainer_class(base: type, objective: str | Objective = "lens", **options: Any) -> type:
    """Return a subclass of one of SkyRL's trainers that uses an objective, for ``get_trainer`` of an experiment.

    Raises:
        InputError: the objective is unknown, or has no such option.
    """
    return with_objective(LensTrainer, base, objective, options)
