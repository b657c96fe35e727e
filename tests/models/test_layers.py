"""Layers that are computed again in the backward pass, or compiled, and models without any."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import (
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from lens.errors import ConfigError
from lens.models.layers import check_layers, use_changed_layers
from lens.sampling.rollouts import Rollouts
from lens.sampling.transformers import TransformersSampler
from tests.support.losses import plain_pass
from tests.support.models import gradients_of
from tests.support.rollouts import ALL, GENERATIONS, LENGTHS, PROMPT_LENGTHS, random_rollouts
from tests.support.rounding import TOLERANCE


def kept_bytes(model: PreTrainedModel, rollouts: Rollouts, **choices: bool) -> int:
    """What a forward pass keeps for the backward pass, weights aside."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values = plain_pass(logits_chunk_size=4, **choices).rate_packs(model, rollouts, ALL)
    del values
    return sum(kept.values())


def test_layers_that_are_computed_again_keep_their_inputs_alone(tiny):
    model, _ = tiny
    rollouts = random_rollouts(PROMPT_LENGTHS, [20] * 6)
    tokens = 5 + 1 + 1 + 9 + 6 * 20  # the prompts of four packs, and six completions
    one_layers_input = tokens * model.config.hidden_size * 4
    layer = kept_bytes(model, rollouts) - kept_bytes(model, rollouts, gradient_checkpointing=True)
    assert layer > 2 * 8 * one_layers_input  # two layers; by the pencil some 5 + 2 + 4 x 2 widths each
    with torch.no_grad():
        assert kept_bytes(model, rollouts, gradient_checkpointing=True) == 0


def test_dropout_stays_off_in_layers_that_are_computed_again(rollouts):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=100, num_attention_heads=2, dropout=0.5, **sizes)).eval().double()
    forward_pass = plain_pass(logits_chunk_size=5)
    expected = forward_pass.rate_packs(model, rollouts, ALL).logprobs
    again = replace(forward_pass, gradient_checkpointing=True).rate_packs(model, rollouts, ALL).logprobs
    torch.testing.assert_close(again, expected)
    difference = gradients_of(model, again) - gradients_of(model, expected)
    assert (
        difference.norm()
        < TOLERANCE["float64"] * gradients_of(model, forward_pass.rate_packs(model, rollouts, ALL).logprobs).norm()
    )


def test_compiled_layers_say_the_same_and_are_compiled_for_all_lengths(tiny, rollouts):
    model, _ = tiny
    forward_pass = plain_pass(temperature=0.9, logits_chunk_size=5)
    torch._dynamo.reset()  # other tests may have compiled the same layers
    counters.clear()
    seen = []
    for lengths in (LENGTHS, (9, 3, 2, 5, 11, 8), (2, 1, 3, 4, 6, 5)):
        some = random_rollouts(PROMPT_LENGTHS, lengths)
        expected = forward_pass.rate_packs(model, some, ALL)
        gradient = gradients_of(model, expected.logprobs)
        values = replace(forward_pass, torch_compile=True).rate_packs(model, some, ALL)
        torch.testing.assert_close(values.logprobs, expected.logprobs, atol=TOLERANCE["float32"], rtol=0)
        torch.testing.assert_close(values.entropies, expected.entropies, atol=TOLERANCE["float32"], rtol=0)
        assert (gradients_of(model, values.logprobs) - gradient).norm() < TOLERANCE["float32"] * gradient.norm()
        seen.append(counters["stats"]["unique_graphs"])
    assert seen[0] > 0 and len(set(seen)) == 1


@pytest.mark.parametrize(
    "choice", [["gradient_checkpointing"], ["torch_compile"], ["gradient_checkpointing", "torch_compile"]]
)
def test_between_updates_the_layers_are_as_they_were(tiny, rollouts, choice):
    model, tokenizer = tiny

    def sample() -> tuple[list[int], Tensor]:
        sampler = TransformersSampler(model, tokenizer, max_num_seqs=4)
        found = sampler.sample(rollouts.prompts, GENERATIONS, 3, max_completion_length=8)
        return found.completion_ids.tolist(), found.logprobs

    before = sample()
    values = plain_pass(logits_chunk_size=5, **dict.fromkeys(choice, True)).rate_packs(model, rollouts, ALL)
    between = sample()  # before the backward pass, which computes layers again
    gradients_of(model, values.logprobs)
    for ids, logprobs in (between, sample()):
        assert ids == before[0] and torch.equal(logprobs, before[1])
    with pytest.raises(RuntimeError, match="on the way"), use_changed_layers(model, True, True):
        raise RuntimeError("on the way")
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("key", ["gradient_checkpointing", "torch_compile"])
def test_a_model_whose_layers_nobody_knows_is_refused(key):
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=100, n_embd=32, n_layer=1, n_head=2))
    memory = OmegaConf.create({"gradient_checkpointing": False, "torch_compile": False, key: True})
    with pytest.raises(ConfigError, match=rf"trainer\.memory\.{key}=True: must be false: .* OpenAIGPTLMHeadModel"):
        check_layers(model, memory)
