"""Models of several kinds, and the plain computation of what they say of completions."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lens.sampling.rollouts import Rollouts
from tests.support.rollouts import ALL, LENGTHS, PROMPT_LENGTHS, random_rollouts

SIZES = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ROWS = [row for pack in ALL for row in pack]
MODELS = {
    "fewer key heads": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=2)),
    "biases": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, intermediate_size=64, num_key_value_heads=4)),
    "a sliding window": lambda: MistralForCausalLM(
        MistralConfig(**SIZES, intermediate_size=64, num_key_value_heads=4, sliding_window=4)
    ),
    "places by a table": lambda: OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32)),
}


def alone(model: PreTrainedModel) -> Tensor:
    """The log-probabilities of ROWS, each from logits of its own."""
    rollouts = random_rollouts(PROMPT_LENGTHS, LENGTHS)
    return torch.cat([dense_values(model, rollouts, row, 0.9)[0] for row in ROWS])


def dense_values(model: PreTrainedModel, rollouts: Rollouts, row: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of one completion from all of its logits, alone in its batch."""
    prompt = rollouts.prompts[row // rollouts.num_generations].token_ids
    completion = rollouts.completion_ids[row, : rollouts.lengths[row]]
    ids = torch.cat([torch.tensor(prompt), completion])
    table = (model(ids[None]).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(dim=-1)  # [T, V]
    return table[torch.arange(len(completion)), completion], -(table.exp() * table).sum(dim=-1)


def gradients_of(model: PreTrainedModel, logprobs: Tensor) -> Tensor:
    """The gradient of an arbitrary function of the log-probabilities."""
    model.zero_grad()
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
