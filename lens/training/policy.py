"""The model that is trained, and what updates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from lens.distributed.collectives import gather_tensor
from lens.training.update import Loss


def make_optimizer(model: PreTrainedModel, settings: DictConfig) -> torch.optim.Optimizer:
    """AdamW over the parameters that have gradients; ``settings`` is the config's optimizer section."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        betas=tuple(settings.adam_betas),
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
    )


@dataclass
class Policy:
    """The model with its loss, optimizer and learning-rate schedule.

    Attributes:
        model, tokenizer: what is trained, sharded or not.
        reference: the model that training started with, for the KL term; None while loss.beta is 0.
        loss: the surrogate, and how log-probabilities are computed.
        optimizer, scheduler: AdamW, and the learning rate over the steps.
        max_grad_norm: gradients with a larger norm are scaled down to it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel | None
    loss: Loss
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
        """Everything that a composed config says of the update of a model."""
        settings, steps = config.optimizer, config.trainer.max_steps
        optimizer = make_optimizer(model, settings)
        scheduler = get_scheduler(settings.lr_scheduler, optimizer, settings.warmup_steps, steps)
        return cls(model, tokenizer, reference, Loss.build(config), optimizer, scheduler, settings.max_grad_norm)

    @property
    def learning_rate(self) -> float:
        """That of the next update."""
        return self.scheduler.get_last_lr()[0]

    def clip_gradient(self) -> float:
        """Scale the gradient down to max_grad_norm; returns the norm that it had."""
        return gather_tensor(clip_grad_norm_(self.model.parameters(), self.max_grad_norm)).item()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it besides weights and the optimizer's tensors."""
        return {"scheduler": self.scheduler.state_dict()}
