"""Rollouts to take a gradient of, the loss it is of, and how far two gradients are apart."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lens.models.loading import load_model
from lens.models.logprobs import ForwardPass
from lens.objectives import lens_advantages
from lens.problems import load_problems
from lens.problems.prompts import PromptFormat, encode_problems
from lens.sampling.transformers import TransformersSampler
from lens.training.experience import Experience, make_experience
from lens.training.update import Loss, compute_gradient
from tests.support.losses import choices_of, plain_loss, plain_pass

MAX_LENGTH = 10
GENERATIONS = 4
# A mixed, a negative, a positive and another mixed group, the last with answers that the grader could not judge.
VERDICTS = (
    ["correct", "incorrect", "no_answer", "incorrect"]
    + ["incorrect"] * 4
    + ["correct"] * 4
    + ["incorrect", "timeout", "correct", "error"]
)
LOSS = plain_loss(epsilon_high=0.3, max_completion_length=MAX_LENGTH)
PASS = plain_pass(temperature=0.8, max_tokens_per_microbatch=10_000, logits_chunk_size=16)


def sample_experience(model_folder: Path) -> Experience:
    """Four questions with four answers each, prompts and answers of different lengths."""
    model, tokenizer = load_model(str(model_folder))
    problems = load_problems("arithmetic", split="test", size=10).select([0, 1, 2, 3])
    problems, prompts, _ = encode_problems(problems, tokenizer, PromptFormat())
    sampler = TransformersSampler(model, tokenizer, max_num_seqs=64)
    rollouts = sampler.sample(prompts, GENERATIONS, 5, max_completion_length=MAX_LENGTH, temperature=PASS.temperature)
    assert len({len(prompt.token_ids) for prompt in prompts}) > 1 and len(set(rollouts.lengths.tolist())) > 2

    generator = torch.Generator().manual_seed(0)
    noise = [0.5 * torch.randn(rollouts.logprobs.shape, generator=generator) * rollouts.mask for _ in range(2)]
    weighed = make_experience(
        rollouts,
        list(problems["level"]),
        VERDICTS,
        partial(lens_advantages, alpha=2.0),
        unjudgeable="invalid",
        reference_logprobs=rollouts.logprobs + noise[1],
    )
    return replace(weighed, old_logprobs=rollouts.logprobs + noise[0])


def norms_in_their_own_type(model: PreTrainedModel) -> None:
    """transformers computes norms in float32 whatever the model's type, which would hide an error of 1e-8."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, LlamaRMSNorm):
                norm = torch.nn.RMSNorm(len(child.weight), eps=child.variance_epsilon, dtype=child.weight.dtype)
                norm.weight = child.weight
                setattr(module, name, norm)


def flat_gradient(model: PreTrainedModel) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def changed(**changes: Any) -> tuple[Loss, ForwardPass]:
    """LOSS and PASS but for what is changed: fields of one of them, or options of the clip."""
    of_pass = {f.name: changes.pop(f.name) for f in fields(ForwardPass) if f.name in changes}
    return plain_loss(**(choices_of(LOSS) | changes)), replace(PASS, **of_pass)


def gradient(
    model: PreTrainedModel, experience: Experience, loss: Loss = LOSS, forward_pass: ForwardPass = PASS
) -> Tensor:
    compute_gradient(model, experience, loss, forward_pass)
    return flat_gradient(model)


def error(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference in terms of the expected norm."""
    assert expected.norm() > 1e-4
    return ((actual - expected).norm() / expected.norm()).item()
