"""Reads verl's config before a run: what an objective cannot work with is refused, what spoils it is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lens.integrations.adapting import warn_of
from lens.integrations.groups import needed_inputs
from lens.integrations.names import Objective
from lens.objectives.inputs import InputError

# What every trainer of verl hands to an estimator.
VERDICT_INPUTS = frozenset({"rewards", "correct", "valid", "lengths", "mask"})
# What the trainers of version 1 have besides.
QUEUE_INPUTS = frozenset(
    {"confidence", "logprobs", "entropies", "reference_logprobs", "problem_ids", "step", "max_completion_length"}
)
DUAL_CLIP_OFF = 1e3  # a ratio that no token reaches


def options_of(algorithm: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``algorithm.objective_options`` of verl's config, or an empty dictionary."""
    return dict(algorithm.get("objective_options") or {})


def check_config(config: Any, objective: Objective) -> None:
    """Warn of the keys of verl's config that spoil an objective.

    Args:
        config: the whole config, as verl's trainers get it.
        objective: the objective that ``algorithm.adv_estimator`` names.

    Raises:
        InputError: a ValueError. The config leaves out what the objective needs.
    """
    algorithm, actor, rollout = config.algorithm, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    needed, name = needed_inputs(objective), algorithm.adv_estimator
    bypass = bool((algorithm.get("rollout_correction") or {}).get("bypass_mode"))
    refused = {
        f"{', '.join(sorted(needed - VERDICT_INPUTS - QUEUE_INPUTS))}, which verl does not have": (
            needed - VERDICT_INPUTS - QUEUE_INPUTS
        ),
        "log-probabilities: set actor_rollout_ref.rollout.calculate_log_probs=true, which "
        "algorithm.rollout_correction.bypass_mode=true builds on": (
            needed & {"confidence", "logprobs"} and bypass and not rollout.calculate_log_probs
        ),
        "entropies: set algorithm.rollout_correction.bypass_mode=false, so that the actor computes them": (
            "entropies" in needed and bypass
        ),
        "log-probabilities of the first model: set actor_rollout_ref.actor.use_kl_loss=true, with kl_loss_coef=0 if "
        "no penalty is meant": (
            "reference_logprobs" in needed and not (actor.use_kl_loss or algorithm.use_kl_in_reward)
        ),
    }
    for missing, is_missing in refused.items():
        if is_missing:
            raise InputError(f"algorithm.adv_estimator={name} needs {missing}")
    warn_of(find_pitfalls(algorithm, actor, rollout))


def find_pitfalls(algorithm: Any, actor: Any, rollout: Any) -> dict[str, Any]:
    """Return sentences on keys that keep negative groups from teaching what the objective means, and which hold."""
    rejection = (algorithm.get("rollout_correction") or {}).get("rollout_rs") or ""
    return {
        "algorithm.filter_groups.enable=true drops the groups whose rewards are equal, before the objective sees "
        "them: no negative group teaches. Set it to false": (algorithm.get("filter_groups") or {}).get("enable"),
        f"actor_rollout_ref.actor.clip_ratio_c={actor.clip_ratio_c} holds back wrong answers whose probability has "
        "risen that many times (dual clip), which the objectives' papers do not have. 1e9 switches it off": (
            actor.clip_ratio_c < DUAL_CLIP_OFF
        ),
        f"algorithm.rollout_correction.rollout_rs={rejection} takes whole answers out of the loss, the long ones above "
        "all. token_k1 takes out single tokens": "seq_" in rejection,
        "actor_rollout_ref.rollout.n=1: a group of one answer has nothing to be compared with": rollout.n == 1,
        "algorithm.norm_adv_by_std_in_grpo=false is read by verl's own grpo alone. Set "
        "+algorithm.objective_options.scale_by_std=false, which lens has": (
            not algorithm.get("norm_adv_by_std_in_grpo", True)
        ),
        "algorithm.use_kl_in_reward=true takes a penalty off the rewards, which are then no verdicts. "
        "actor_rollout_ref.actor.use_kl_loss=true leaves them alone": algorithm.get("use_kl_in_reward"),
    }
