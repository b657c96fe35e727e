"""LENS inside OpenRLHF 0.11: a mixin for its experience maker, which has log-probabilities beside rewards."""

from __future__ import annotations

from typing import Any

from torch import cat

from lens.integrations.adapting import per_token, stack_rows, warn_of, with_objective
from lens.integrations.groups import group_advantages, try_objective
from lens.integrations.names import Objective


class LensExperienceMaker:
    """Goes before RemoteExperienceMaker among the bases of a class. `install` does that."""

    objective: Objective

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = self.strategy.args
        size = settings.rollout.n_samples_per_prompt
        try_objective(self.objective, max(2, size))
        warn_of(
            {
                f"--actor.dual_clip={settings.actor.dual_clip} holds back wrong answers whose probability has risen "
                "that many times, which the objectives' papers do not have": settings.actor.dual_clip is not None,
                "--algo.dynamic_filtering_enable drops the groups whose scores are equal, before the objective sees "
                "them: no negative group teaches": settings.algo.dynamic_filtering_enable,
                "--algo.kl.init_coef has no effect without --algo.kl.use_loss: the objective replaces the returns that "
                "the penalty is in": settings.algo.kl.init_coef > 0 and not settings.algo.kl.use_loss,
                "--rollout.n_samples_per_prompt=1: a group of one answer has nothing to be compared with": size == 1,
            }
        )

    def compute_advantages_and_returns(self, experiences: list[Any]) -> list[Any]:
        """Return the experiences of a rollout with the objective's advantages, also as returns, [B_i, T_i] each."""
        experiences = super().compute_advantages_and_returns(experiences)
        size = self.strategy.args.rollout.n_samples_per_prompt
        mask = stack_rows([e.action_mask for e in experiences])  # [B, T]
        advantages = group_advantages(
            cat([e.rewards for e in experiences]),
            [place // size for e in experiences for place in e.index],  # answers to one question were neighbours
            mask=mask,
            logprobs=stack_rows([e.action_log_probs.float() for e in experiences]),
            objective=self.objective,
            keys={"group_ids": "--rollout.n_samples_per_prompt must be above 1"},
        )
        rows = per_token(advantages, mask).split([len(e.index) for e in experiences])
        for experience, values in zip(experiences, rows, strict=True):
            experience.advantages = values[:, : experience.action_mask.shape[1]]
            experience.returns = experience.advantages.clone()
        return experiences


def install(objective: str | Objective = "lens", **options: Any) -> None:
    """Make OpenRLHF's trainer use an objective. Call it in the process of PPOTrainer, before that is made.

    Raises:
        InputError: the objective is unknown, or has no such option.
    """
    from openrlhf.trainer import ppo_trainer

    base = ppo_trainer.RemoteExperienceMaker
    ppo_trainer.RemoteExperienceMaker = with_objective(LensExperienceMaker, base, objective, options)
