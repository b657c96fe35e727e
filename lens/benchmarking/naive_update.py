"""Computes the update's gradient in the simplest way, as a baseline for the benchmark.

Sequences are padded, each completion comes with its own copy of the prompt, and every token gets logits.
"""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lens.losses.surrogate import call_surrogate
from lens.models.loading import DTYPES
from lens.models.logprobs import ForwardPass
from lens.training.experience import Experience
from lens.training.update import Loss


def naive_gradient(
    model: PreTrainedModel, experience: Experience, loss: Loss, forward_pass: ForwardPass, *, sequences: int
) -> None:
    """Write the gradient of the batch's loss to the parameters' ``.grad``.

    It is the gradient of `compute_gradient`, but without a KL term and without importance weights.

    Args:
        model: the policy.
        experience: the whole optimizer batch.
        loss: the surrogate.
        forward_pass: the temperature and the data type of matrix products; the rest of it is not used.
        sequences: how many sequences make a micro-batch, padded to its longest.
    """
    r, autocast = experience.rollouts, forward_pass.autocast
    weights, advantages = loss.weights(experience), experience.advantages.flatten()
    model.zero_grad()
    for rows in torch.arange(len(r.lengths)).split(sequences):
        prompts = [torch.tensor(r.prompts[row // r.num_generations].token_ids) for row in rows.tolist()]
        completions = [r.completion_ids[row, : r.lengths[row]] for row in rows]
        both = [torch.cat(pair).to(model.device) for pair in zip(prompts, completions, strict=True)]
        ids = pad_sequence(both, batch_first=True)  # [B, L]
        real = pad_sequence([torch.ones_like(each) for each in both], batch_first=True)  # [B, L]
        places = torch.arange(ids.shape[1], device=ids.device)
        starts = torch.tensor([len(prompt) for prompt in prompts], device=ids.device)
        sampled = (places >= starts[:, None]) & (real == 1)  # [B, L]
        with torch.autocast(ids.device.type, DTYPES[autocast or "bfloat16"], enabled=autocast is not None):
            logits = model(input_ids=ids, attention_mask=real, use_cache=False).logits[:, :-1]  # [B, L-1, V]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / forward_pass.temperature
        logprobs = logits.log_softmax(dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)  # [B, L-1]
        logprobs = logprobs[sampled[:, 1:]]  # [n]
        losses, _ = call_surrogate(
            loss.surrogate,
            logprobs,
            experience.old_logprobs[rows][r.mask[rows]].to(logprobs),
            advantages[rows].repeat_interleave(r.lengths[rows]).to(logprobs),
            r.lengths[rows],
        )  # [n]
        (losses * weights[rows].repeat_interleave(r.lengths[rows]).to(logprobs)).sum().backward()
