"""Losses: how far an advantage may move the policy in one round, token by token."""

from lens.losses.aggregation import token_weights
from lens.losses.importance import importance_weights
from lens.losses.ppo_clip import clipped_surrogate, kl_to_reference

__all__ = ["clipped_surrogate", "importance_weights", "kl_to_reference", "token_weights"]
