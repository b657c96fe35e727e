"""Objectives turn verdicts, and what else they name, into advantages. inputs.py lists what they can name."""

from lens.objectives.ace import ace_advantages
from lens.objectives.controls import shuffled_advantages, uniform_advantages
from lens.objectives.grpo import grpo_advantages
from lens.objectives.lens import calibrated_rewards, estimate_difficulty, lens_advantages
from lens.objectives.lens_mixture import lens_mixture_advantages
from lens.objectives.max_rl import max_rl_advantages
from lens.objectives.ngrpo import ngrpo_advantages
from lens.objectives.pass_at_k import pass_at_k_advantages
from lens.objectives.qae import qae_advantages
from lens.objectives.reinforce_pp_baseline import reinforce_pp_baseline_advantages
from lens.objectives.rl_zvp import rl_zvp_advantages
from lens.objectives.rloo import rloo_advantages
from lens.objectives.theory import w
from lens.objectives.token_lens import token_lens_advantages
from lens.objectives.unlikeliness import unlikeliness_advantages
from lens.objectives.w_reinforce import w_reinforce_advantages

__all__ = [
    "ace_advantages",
    "calibrated_rewards",
    "estimate_difficulty",
    "grpo_advantages",
    "lens_advantages",
    "lens_mixture_advantages",
    "max_rl_advantages",
    "ngrpo_advantages",
    "pass_at_k_advantages",
    "qae_advantages",
    "reinforce_pp_baseline_advantages",
    "rl_zvp_advantages",
    "rloo_advantages",
    "shuffled_advantages",
    "token_lens_advantages",
    "uniform_advantages",
    "unlikeliness_advantages",
    "w",
    "w_reinforce_advantages",
]
