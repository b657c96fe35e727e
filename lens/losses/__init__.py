"""Losses: how far an advantage may move the policy in one round, token by token."""

from lens.losses.aggregation import token_weights
from lens.losses.cispo import cispo_loss
from lens.losses.gmpo import gmpo_loss
from lens.losses.gspo import gspo_loss
from lens.losses.importance import importance_weights
from lens.losses.kl import kl_to_reference
from lens.losses.ppo_clip import clipped_surrogate, ppo_clip_loss
from lens.losses.reinforce import reinforce_loss
from lens.losses.sapo import sapo_loss
from lens.losses.surrogate import Surrogate
from lens.losses.topr import topr_loss

__all__ = [
    "Surrogate",
    "cispo_loss",
    "clipped_surrogate",
    "gmpo_loss",
    "gspo_loss",
    "importance_weights",
    "kl_to_reference",
    "ppo_clip_loss",
    "reinforce_loss",
    "sapo_loss",
    "token_weights",
    "topr_loss",
]
