"""What objectives around another objective share: they ask for what it asks for, and remember what it remembers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from lens.objectives.groups import all_valid, group_kinds
from lens.objectives.inputs import call_by_name, find_inputs


class Wrapper:
    """An objective around another one.

    Attributes:
        needs: what it asks for itself.
        memory: names of the attributes that its state holds, besides the state of the objective inside.
    """

    needs: ClassVar[frozenset[str]]
    memory: ClassVar[tuple[str, ...]]

    def __init__(self, objective: Callable[..., Tensor]) -> None:
        self.objective = objective

    @property
    def inputs(self) -> frozenset[str]:
        """What a call has to be given."""
        return find_inputs(self.objective) | self.needs

    def weigh_inside(self, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the advantages of the objective inside, and which groups are negative, bool [Q, 1]."""
        advantages = call_by_name(self.objective, given)
        return advantages, group_kinds(given["correct"], all_valid(given["correct"], given["valid"])).negative

    def state_dict(self) -> dict[str, Any]:
        """Return the memory, with that of the objective inside."""
        inner = {"objective": self.objective.state_dict()} if hasattr(self.objective, "state_dict") else {}
        return {name: getattr(self, name) for name in self.memory} | inner

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for name in self.memory:
            setattr(self, name, state[name])
        if "objective" in state:
            self.objective.load_state_dict(state["objective"])


def scale_negative(advantages: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Return advantages [Q, G] or [Q, G, T], those of negative groups multiplied by a number; float32."""
    negative = negative.view(-1, *[1] * (advantages.dim() - 1))
    return torch.where(negative, scale * advantages, advantages).float()
