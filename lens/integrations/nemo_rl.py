"""LENS inside NeMo-RL: an advantage estimator that its config chooses by the objective's name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lens.integrations.adapting import per_token, warn_of
from lens.integrations.groups import group_advantages
from lens.integrations.names import NAMES, make_objective

OF_NEMO_RL = ("grpo", "gdpo", "reinforce_plus_plus", "opd")  # its own estimators keep their names
FACTORY = "_create_advantage_estimator"


class LensAdvantageEstimator:
    """An objective in the form of NeMo-RL's advantage estimators.

    Args:
        estimator_config: ``grpo.adv_estimator``: ``name``, the objective; ``objective_options``, its options.

    Raises:
        InputError: the objective is unknown, or has no such option.
    """

    def __init__(self, estimator_config: Any) -> None:
        options = read(estimator_config, "objective_options") or {}
        self.objective = make_objective(read(estimator_config, "name"), **options)

    def compute_advantage(
        self,
        prompt_ids: Tensor,
        rewards: Tensor,
        mask: Tensor,
        logprobs_policy: Tensor | None = None,
        logprobs_reference: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the advantage of each token, float32 [B, T], 0 outside the mask.

        Args:
            prompt_ids: [B] numbers, or [B, P] the tokens of the prompts; equal ones are the same question.
            rewards: [B].
            mask: [B, T], the tokens that were sampled.
            logprobs_policy, logprobs_reference: [B, T], of the policy that sampled and of the first model.
            kwargs: what NeMo-RL has for other estimators.

        Raises:
            InputError: the objective needs log-probabilities that are not given.
        """
        groups = torch.unique(prompt_ids, dim=0, return_inverse=True)[1]
        advantages = group_advantages(
            rewards,
            groups,
            mask=mask,
            logprobs=logprobs_policy,
            reference_logprobs=logprobs_reference,
            objective=self.objective,
        )
        return per_token(advantages, mask)


def install() -> None:
    """Let ``grpo.adv_estimator.name`` be an objective. Call it before the training function of NeMo-RL."""
    from nemo_rl.algorithms import grpo

    original = getattr(grpo, FACTORY)

    @functools.wraps(original)
    def create(master_config: Any) -> Any:
        settings = read(master_config, "grpo")
        estimator = read(settings, "adv_estimator")
        if estimator is None or read(estimator, "name") not in set(NAMES) - set(OF_NEMO_RL):
            return original(master_config)
        warn_of(
            {
                "grpo.use_dynamic_sampling=true drops the groups whose rewards are equal: no negative group teaches": (
                    read(settings, "use_dynamic_sampling")
                ),
                "grpo.num_generations_per_prompt=1: a group of one answer has nothing to be compared with": (
                    read(settings, "num_generations_per_prompt") == 1
                ),
            }
        )
        return LensAdvantageEstimator(estimator)

    for name, module in list(sys.modules.items()):  # other modules have bound the function by its name
        if name.startswith("nemo_rl.") and getattr(module, FACTORY, None) is original:
            setattr(module, FACTORY, create)


def read(config: Any, key: str) -> Any:
    """Return a value of a config that is a mapping in some versions and an object in others; None if it has none."""
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
