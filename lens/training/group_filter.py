"""Decides which groups of a draw are kept for the update; the others are replaced by newly sampled ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from lens.errors import ConfigError
from lens.objectives.groups import group_kinds

Drop = Literal["zero_variance", "all_correct"]


@dataclass(frozen=True)
class GroupFilter:
    """Drops groups, as DAPO and NGRPO do. Dropped groups cost sampling, and nothing else.

    Attributes:
        drop: "zero_variance" drops groups in which every advantage is 0 (DAPO, arXiv 2503.14476). It looks at the final
            advantages, so it keeps negative groups under an objective that teaches from them. "all_correct" drops
            groups without a wrong answer (NGRPO, arXiv 2509.18851).
        max_draws: how many times a round may sample num_prompts_per_rollout questions.

    Raises:
        ConfigError: a value cannot work.
    """

    drop: Drop
    max_draws: int

    def __post_init__(self):
        if self.drop not in get_args(Drop):
            raise ConfigError("filter_groups.drop", self.drop, f"must be one of {', '.join(get_args(Drop))}")
        if type(self.max_draws) is not int or self.max_draws < 1:
            raise ConfigError("filter_groups.max_draws", self.max_draws, "must be an integer >= 1")

    def find_kept(self, advantages: Tensor, correct: Tensor, valid: Tensor) -> list[int]:
        """Return the places of the groups that stay.

        Args:
            advantages: [Q, G] or [Q, G, T]; NaN counts as 0.
            correct, valid: bool [Q, G].
        """
        if self.drop == "zero_variance":
            keep = (advantages.nan_to_num() != 0).flatten(1).any(dim=1)  # [Q]
        else:
            kinds = group_kinds(correct, valid)
            keep = (kinds.negative | kinds.mixed).squeeze(1)  # [Q]
        return keep.nonzero().flatten().tolist()
