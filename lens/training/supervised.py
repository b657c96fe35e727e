"""Supervised learning of worked solutions: the warm-up before reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from omegaconf import DictConfig
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel, get_scheduler

from lens.models.logprobs import ForwardPass
from lens.sampling.rollouts import Rollouts
from lens.training.policy import make_optimizer


def iterate_batches(number: int, batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield ``steps`` batches of places in 0..number-1. Each place comes once before any comes again."""
    generator, waiting = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        while len(waiting) < batch_size:
            waiting += torch.randperm(number, generator=generator).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def teach(
    model: PreTrainedModel,
    lessons: Rollouts,
    forward_pass: ForwardPass,
    settings: DictConfig,
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> Iterator[float]:
    """Train a model on solutions, and yield the loss of each update: nats a token of the solutions.

    Args:
        model: the model, in float32.
        lessons: problems with a solution each. Prompts teach nothing.
        forward_pass: how log-probabilities are computed.
        settings: the config's optimizer section.
        steps: updates in total.
        batch_size: solutions in an update.
        seed: seed of the order of the problems.
    """
    optimizer = make_optimizer(model, settings)
    scheduler = get_scheduler(settings.lr_scheduler, optimizer, settings.warmup_steps, steps)
    for rows in iterate_batches(len(lessons.lengths), batch_size, steps, seed):
        loss, tokens = 0.0, int(lessons.lengths[rows].sum())
        for _, values, _ in forward_pass.rate_in_turns(model, lessons, rows, entropies=False):
            part = -values.logprobs.sum() / tokens
            part.backward()
            loss += part.item()
        clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        yield loss
