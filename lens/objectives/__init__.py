"""Objectives: pure functions from verdicts and confidences [Q, G] to advantages [Q, G]."""

from lens.objectives.controls import shuffled_advantages, uniform_advantages
from lens.objectives.grpo import grpo_advantages
from lens.objectives.lens import calibrated_rewards, estimate_difficulty, lens_advantages
from lens.objectives.theory import w

__all__ = [
    "calibrated_rewards",
    "estimate_difficulty",
    "grpo_advantages",
    "lens_advantages",
    "shuffled_advantages",
    "uniform_advantages",
    "w",
]
