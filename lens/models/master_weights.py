"""AdamW for weights in bfloat16: it updates float32 copies of them, the master weights, and rounds these.

A number in bfloat16 has 8 significant bits: near 0.02 the next one is 1.2e-4 away. An update of 1e-6 rounds to nothing
there, however often it is made. A master weight adds such updates up, and the weight changes once they reach half of
that distance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.adamw import AdamW, adamw

from lens.models.head import widened_dtype


def needs_master(parameter: Tensor) -> bool:
    """Return whether a weight is narrower than float32, so that small updates would be lost in it."""
    return widened_dtype(parameter) != parameter.dtype


def empty_state(parameter: Tensor) -> dict[str, Tensor]:
    """Return zeros of the form of AdamW's state for a weight. Shards stay shards.

    Returns:
        step (no dimension), exp_avg and exp_avg_sq, and master for a weight that needs one; the last three have the
        weight's shape, in float32 or wider.
    """
    names = ("exp_avg", "exp_avg_sq", *(["master"] if needs_master(parameter) else []))
    values = {name: torch.zeros_like(parameter, dtype=widened_dtype(parameter)) for name in names}
    return {"step": torch.zeros((), dtype=torch.float32), **values}


class MasterWeightAdamW(AdamW):
    """AdamW that updates the master weights, and makes each weight the rounding of its master.

    Gradients may be in any data type; `lens.training.update` adds them up in float32. A weight in float32 or wider is
    updated as by AdamW.

    Stochastic rounding would need no masters, but it adds noise as large as a step of bfloat16 to each weight and a
    random state to each checkpoint. Kahan's sums keep 16 bits of a weight instead of 24. Masters are exact.
    """

    @torch.no_grad()
    def step(self) -> None:
        """Make one update with the gradients that there are."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            states = [self._state_of(weight) for weight in weights]
            masters = [self._master_of(weight) for weight in weights]
            adamw(
                masters,
                [weight.grad.to(master.dtype) for weight, master in zip(weights, masters, strict=True)],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                foreach=group["foreach"],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for weight, master in zip(weights, masters, strict=True):
                if master is not weight:
                    weight.copy_(master)

    def masters(self) -> list[Tensor]:
        """Return what is updated: the master of each weight that has one, and the other weights themselves."""
        return [self._master_of(weight) for group in self.param_groups for weight in group["params"]]

    def _master_of(self, weight: nn.Parameter) -> Tensor:
        return self._state_of(weight).get("master", weight)

    def _state_of(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """Return a weight's state; before the first update make it, with the weight as its master."""
        if weight not in self.state:
            self.state[weight] = empty_state(weight)
            if needs_master(weight):
                self.state[weight]["master"].copy_(weight.detach())
        return self.state[weight]
