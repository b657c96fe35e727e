"""Holds the trained model with its loss, forward pass, optimizer and learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from lens.distributed.collectives import gather_tensor
from lens.models.logprobs import ForwardPass
from lens.models.master_weights import MasterWeightAdamW, needs_master
from lens.training.changed_weights import changed_share, sample_weights
from lens.training.update import Loss


def make_optimizer(model: PreTrainedModel, settings: DictConfig) -> torch.optim.Optimizer:
    """Make AdamW over the trainable parameters, with master weights for those narrower than float32.

    It updates one parameter after the other, so that a GPU needs no copy of all second moments at once.

    ``settings`` is the config's optimizer section.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    make = MasterWeightAdamW if any(map(needs_master, trained)) else torch.optim.AdamW
    return make(
        trained,
        lr=settings.learning_rate,
        betas=tuple(settings.adam_betas),
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        foreach=False,
    )


@dataclass
class Policy:
    """The model, and what computes and applies its updates.

    Attributes:
        model, tokenizer: the model that is trained, sharded or not, and its tokenizer.
        reference: the model that training started with, for the KL term; None while loss.beta is 0.
        loss: the surrogate.
        forward_pass: how log-probabilities are computed.
        optimizer, scheduler: AdamW, and the schedule of its learning rate.
        max_grad_norm: a gradient with a larger norm is scaled down to this norm.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel | None
    loss: Loss
    forward_pass: ForwardPass
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    max_grad_norm: float

    @classmethod
    def build(
        cls,
        config: DictConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reference: PreTrainedModel | None = None,
    ) -> Policy:
        """Make loss, forward pass, optimizer and schedule for a model from a composed config."""
        loss, forward_pass = Loss.build(config), ForwardPass.build(config.trainer)
        settings, steps = config.optimizer, config.trainer.max_steps
        optimizer = make_optimizer(model, settings)
        scheduler = get_scheduler(settings.lr_scheduler, optimizer, settings.warmup_steps, steps)
        return cls(model, tokenizer, reference, loss, forward_pass, optimizer, scheduler, settings.max_grad_norm)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        return self.scheduler.get_last_lr()[0]

    def clip_gradient(self) -> float:
        """Scale the gradient down to max_grad_norm, and return the norm that it had before."""
        return gather_tensor(clip_grad_norm_(self.model.parameters(), self.max_grad_norm)).item()

    def update_weights(self) -> dict[str, float]:
        """Apply the gradient, and return the share of the trained weights that this changed.

        Returns:
            weights/changed_share, of the model's own weights. If some have masters, also weights/master_changed_share,
            of what the optimizer keeps.
        """
        groups = self.optimizer.param_groups
        kinds = {"weights/changed_share": [weight for group in groups for weight in group["params"]]}
        if isinstance(self.optimizer, MasterWeightAdamW):
            kinds["weights/master_changed_share"] = self.optimizer.masters()
        before = {name: [part.clone() for part in sample_weights(weights)] for name, weights in kinds.items()}
        self.optimizer.step()
        return {name: changed_share(before[name], weights) for name, weights in kinds.items()}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores besides the weights and the optimizer's tensors."""
        return {"scheduler": self.scheduler.state_dict()}
