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
from lens.training.update import Loss


def make_optimizer(model: PreTrainedModel, settings: DictConfig) -> torch.optim.Optimizer:
    """Make AdamW over the trainable parameters; ``settings`` is the config's optimizer section."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        betas=tuple(settings.adam_betas),
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
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

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores besides the weights and the optimizer's tensors."""
        return {"scheduler": self.scheduler.state_dict()}
