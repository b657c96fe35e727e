"""GRPO plus the policy gradient of pass@G, the chance that one of a group's G answers is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, group_kinds, normalise
from lens.objectives.options import not_negative, one_of
from lens.objectives.tracker import BetaTracker

BASELINES = ("tracked", "batch", "one")


class PassG:
    """Advantages of GRPO plus (alpha/G) (1{c > 0} - b_q) for every answer of a group with c right answers.

    REINFORCE on the reward 1{c > 0} with the baseline b_q. The added gradient is (alpha/G) times an unbiased estimate
    of the gradient of pass@G for every b_q that is fixed before the round.

    Args:
        alpha: weight of pass@G.
        baseline: what b_q is. "tracked": the share of problem q's earlier rounds that had a right answer, by
            `BetaTracker`; the round's own outcome enters it after the advantages. "batch": the share of the round's
            groups that have one. "one": 1, so that nothing but negative groups gets the term, and these get -alpha/G.
        decay: what a round leaves of a problem's old counts, for "tracked".
        eps: added to the standard deviation in mixed groups.

    Raises:
        ValueError: alpha is below 0, decay is outside [0, 1], or the baseline has another name.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.25,
        baseline: Literal["tracked", "batch", "one"] = "tracked",
        decay: float = 0.875,
        eps: float = 1e-6,
    ) -> None:
        not_negative(alpha=alpha)
        one_of(BASELINES, baseline=baseline)
        self.alpha, self.baseline, self.eps = alpha, baseline, eps
        self.tracker = BetaTracker(decay)

    def __call__(
        self,
        correct: Tensor,
        *,
        problem_ids: Sequence[str],
        rewards: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return the advantages of a round, float32 [Q, G], and remember which groups had a right answer.

        Args:
            correct, valid: bool [Q, G]. Invalid answers do not count in G and c, and get 0. A group without a valid
                answer is not remembered.
            problem_ids: Q names.
            rewards: [Q, G], what GRPO compares; None: the verdicts. c counts verdicts in any case.
        """
        valid = all_valid(correct, valid)
        size = valid.sum(dim=1, keepdim=True).double()  # [Q, 1], G
        tried = size > 0
        solved = tried & ~group_kinds(correct, valid).negative  # [Q, 1], c > 0
        bonus = self.alpha / size.clamp(min=1) * (solved.double() - self._baseline(problem_ids, solved, tried))
        if self.baseline == "tracked":
            self.tracker.update(problem_ids, solved[:, 0], tried[:, 0])
        of_grpo = normalise(correct if rewards is None else rewards, valid, eps=self.eps)
        return (of_grpo + bonus * valid).float()

    def _baseline(self, problem_ids: Sequence[str], solved: Tensor, tried: Tensor) -> Tensor:
        """Return b_q, float64 [Q, 1]."""
        if self.baseline == "tracked":
            return self.tracker.rates(problem_ids).to(solved.device)
        rate = solved.sum().double() / tried.sum().clamp(min=1) if self.baseline == "batch" else 1.0
        return torch.full(solved.shape, float(rate), dtype=torch.float64, device=solved.device)

    def state_dict(self) -> dict:
        return self.tracker.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.tracker.load_state_dict(state)
