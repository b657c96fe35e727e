"""What objectives do, at the defaults of their configs, in groups from which GRPO learns nothing."""

from __future__ import annotations

# Negative groups teach nothing.
SILENT = {"grpo", "dr_grpo", "rloo", "max_rl", "qae", "pass_at_k", "unlikeliness", "ace"}
SILENT |= {"lens_mixed_only", "lens_rho_policy", "psr"}
# Positive groups teach.
TEACHES_POSITIVE = {"unlikeliness", "rl_zvp", "spo", "pass_g", "reinforce_pp_baseline", "w_reinforce", "psr"}
# A mixed group's right answers, or its wrong ones, get nothing.
ONE_SIDED = {"qae", "psr", "nsr"}
