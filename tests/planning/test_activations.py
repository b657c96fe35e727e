"""The bytes that a plan counts for activations against those that autograd keeps."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lens.models.logprobs import ForwardPass
from lens.models.packing import share_prompts
from lens.planning.activations import count_working_memory
from lens.planning.architecture import Architecture
from tests.support.losses import plain_pass
from tests.support.rollouts import random_rollouts

PROMPT, ANSWER, FEW, MANY = 4, 60, 2, 6


def llama(layers: int) -> LlamaConfig:
    sizes = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 224, "num_hidden_layers": layers}
    return LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)


def kept_bytes(layers: int, dtype: str, forward_pass: ForwardPass) -> int:
    """What a forward pass keeps for the backward pass, besides weights."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama(layers)).to(getattr(torch, dtype)).eval()
    assert share_prompts(model)
    own, kept = {weight.untyped_storage().data_ptr() for weight in model.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # stays, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward_pass.rate_packs(model, random_rollouts([PROMPT], [ANSWER]), [[0]], entropies=False)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


@pytest.mark.parametrize(
    ("dtype", "autocast", "types"),
    [
        ("float32", None, {"weight_bytes": 4, "compute_bytes": 4}),
        ("bfloat16", None, {"weight_bytes": 2, "compute_bytes": 2}),
        ("float32", "bfloat16", {"weight_bytes": 4, "compute_bytes": 2}),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_more_layers_keep_is_what_the_plan_counts(dtype, autocast, types, checkpointing):
    forward_pass = plain_pass(autocast=autocast, gradient_checkpointing=checkpointing)
    few, many = (kept_bytes(layers, dtype, forward_pass) for layers in (FEW, MANY))
    memory = {"max_tokens_per_microbatch": PROMPT + ANSWER, "logits_chunk_size": 1}
    config = OmegaConf.create({**memory, "gradient_checkpointing": checkpointing})
    less, more = (
        count_working_memory(Architecture.of(llama(layers)), config, **types, sharded=False)["activations"]
        for layers in (FEW, MANY)
    )
    assert many - few == pytest.approx(more - less, rel=0.05)
