"""What of TRL's config would break an objective, or do nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lens.integrations.groups import needed_inputs
from lens.integrations.names import Objective

COUNTS_LEFT_OUT = ("grpo", "sapo", "dr_grpo", "luspo")  # losses whose denominator counts answers, not tokens


def check_reference(objective: Objective, beta: float) -> None:
    """Raise ValueError if an objective needs the reference model, which TRL has only with a KL term."""
    if "reference_logprobs" in needed_inputs(objective) and beta == 0:
        raise ValueError(f"beta={beta}: the objective needs the reference model, which TRL has if beta is above 0")


def find_warnings(config: Any, reward_functions: Sequence[str], leaves_out: bool) -> list[str]:
    """Return a warning for each key that works against the objective or has no effect; each names key and value.

    Args:
        config: TRL's GRPOConfig.
        reward_functions: names of the functions among which the verdict was not chosen; empty if it was.
        leaves_out: whether the objective takes answers out of the batch.
    """
    warnings = []
    mode = config.vllm_importance_sampling_mode
    if config.use_vllm and config.vllm_importance_sampling_correction and mode.endswith("_mask"):
        what = "whole answers, long ones above all" if mode == "sequence_mask" else "tokens"
        text = f"takes {what} out of the loss after their group was weighed; 'token_truncate' keeps them"
        warnings.append(f"vllm_importance_sampling_mode={mode!r} {text}")
    if config.delta is not None:
        text = "stops pushing a wrong answer down where its ratio is above that; None is the paper's loss"
        warnings.append(f"delta={config.delta} {text}")
    if config.off_policy_mask_threshold is not None:
        text = "takes wrong answers out of the loss, and no right ones; None keeps them"
        warnings.append(f"off_policy_mask_threshold={config.off_policy_mask_threshold} {text}")
    if config.scale_rewards != "group":
        text = "has no effect: the objective scales, and objective_options={'scale_by_std': False} changes that"
        warnings.append(f"scale_rewards={config.scale_rewards!r} {text}")
    if config.multi_objective_aggregation != "sum_then_normalize":
        text = "has no effect: the objective gets the weighted sum of the rewards"
        warnings.append(f"multi_objective_aggregation={config.multi_objective_aggregation!r} {text}")
    if leaves_out and config.loss_type in COUNTS_LEFT_OUT:
        text = "counts answers that the objective takes out of the batch in its denominator; 'dapo' does not"
        warnings.append(f"loss_type={config.loss_type!r} {text}")
    if len(reward_functions) > 1:
        text = f"of the reward functions {', '.join(reward_functions)} the first says what is correct"
        warnings.append(f"verdict=None: {text}")
    return warnings
