"""Completions that share their prompt against each alone in its row, in models of several kinds; and the head."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lens.errors import ConfigError
from lens.models.head import HeadValues, rate_tokens
from lens.models.logprobs import rate_completions
from lens.models.shared_prompts import SHARED_PROMPTS, Collect, Sharing, Spread, make_window_mask
from tests.models.test_logprobs import ALL, LENGTHS, PROMPT_LENGTHS, dense_values, gradients_of, random_rollouts

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


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_completions_that_share_a_prompt_are_as_if_alone(make):
    torch.manual_seed(0)
    model = make().eval()
    assert model.config._attn_implementation == "sdpa"
    expected = alone(model)
    gradient = gradients_of(model, expected)
    model.set_attn_implementation(SHARED_PROMPTS)
    torch.testing.assert_close(alone(model), expected)  # without anything shared it is transformers' own
    rollouts = random_rollouts(PROMPT_LENGTHS, LENGTHS)
    for choices in ({}, {"gradient_checkpointing": True}):
        values = rate_completions(model, rollouts, ALL, temperature=0.9, logits_chunk_size=5, **choices)
        torch.testing.assert_close(values.logprobs, expected, atol=1e-5, rtol=0)
        assert (gradients_of(model, values.logprobs) - gradient).norm() < 1e-5 * gradient.norm()


def test_a_prompt_is_computed_once():
    torch.manual_seed(0)
    model = MODELS["fewer key heads"]().eval()
    seen = []
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[:2]))
    rollouts = random_rollouts((40,), (3,) * 8)
    for name, tokens in (("sdpa", (8, 43)), (SHARED_PROMPTS, (1, 40 + 8 * 3))):
        model.set_attn_implementation(name)
        rate_completions(model, rollouts, [list(range(8))], temperature=1.0, logits_chunk_size=5)
        assert seen.pop() == tokens


class Forgetful(LlamaModel):
    """A model that takes keywords for its attention and does not hand them on."""

    def forward(self, *args, sharing=None, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_model_that_does_not_hand_on_what_is_shared_is_refused():
    model = MODELS["fewer key heads"]().eval()
    model.model.__class__ = Forgetful
    model.set_attn_implementation(SHARED_PROMPTS)
    with pytest.raises(ConfigError, match=r"model\.attention='sdpa': eager, as LlamaForCausalLM"):
        rate_completions(model, random_rollouts((5,), (4, 4)), [[0, 1]], temperature=1.0, logits_chunk_size=5)


@given(
    packs=st.lists(
        st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=4)), min_size=1, max_size=4
    )
)
def test_a_batch_of_completions_with_their_prompts_and_back(packs):
    prompts, lengths = zip(*packs, strict=True)
    sharing = Sharing.of(prompts, lengths)
    tokens = sum(prompts) + sum(map(sum, lengths))
    row = torch.randn(tokens, 2, dtype=torch.float64, requires_grad=True)
    batch = Spread.apply(row, sharing)  # [N, S, 2]
    start, number = 0, 0
    for prompt, each in packs:
        own = start + prompt
        for length in each:
            expected = torch.cat([row[start : start + prompt], row[own : own + length]])
            assert torch.equal(batch[number, : prompt + length], expected)
            own, number = own + length, number + 1
        start = own
    assert number == len(batch)
    assert torch.equal(Collect.apply(batch, sharing), row)
    assert torch.autograd.gradcheck(lambda x: Collect.apply(Spread.apply(x, sharing).cumsum(dim=1).sin(), sharing), row)


def test_a_window_lets_a_token_see_so_many():
    assert make_window_mask(4, None, torch.device("cpu")) is make_window_mask(4, 4, torch.device("cpu")) is None
    assert make_window_mask(4, 2, torch.device("cpu"))[0, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_head_has_the_gradient_that_its_values_have(with_bias, temperature):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 3), (7, 3), (7,))
    )
    targets = torch.tensor([0, 6, 2, 2, 5])
    bias = bias if with_bias else None
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    drawn = torch.distributions.Categorical(logits=logits)
    logprobs, entropies = HeadValues.apply(hidden, weight, bias, targets, temperature, True)
    torch.testing.assert_close(logprobs, drawn.log_prob(targets))
    torch.testing.assert_close(entropies, drawn.entropy())
    for inputs in ((hidden, weight, bias, targets, temperature, entropies) for entropies in (True, False)):
        assert torch.autograd.gradcheck(lambda *x: [v for v in HeadValues.apply(*x) if v is not None], inputs)


@pytest.mark.parametrize("with_entropies", [False, True])
def test_the_head_is_the_same_in_several_pieces(with_entropies):
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 2), (2**19, 2), (2**19,))
    ]  # two tokens a piece
    targets = torch.tensor([0, 2**19 - 1, 3, 3, 77])
    drawn = torch.distributions.Categorical(logits=torch.nn.functional.linear(*inputs))
    expected = drawn.log_prob(targets) + (drawn.entropy() if with_entropies else 0)
    logprobs, entropies = HeadValues.apply(*inputs, targets, 1.0, with_entropies)
    found = logprobs + (entropies if with_entropies else 0)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(5, generator=generator, dtype=torch.float64)
    gradients = (torch.autograd.grad(values, inputs, upstream) for values in (found, expected))
    for own, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(own, reference)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_the_head_in_bfloat16_is_near_that_of_float32(chunk, is_frozen):
    """Whatever autocast is around it, which would be another one in the backward pass."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 50)
    hidden = torch.randn(40, 16, generator=generator).bfloat16()
    targets = torch.randint(50, (40,), generator=generator)
    head.requires_grad_(not is_frozen)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        own = head.bfloat16().to(dtype)
        states = hidden.to(dtype).requires_grad_()
        own.zero_grad()
        with torch.autocast("cpu", torch.float16 if dtype is torch.float32 else torch.bfloat16):
            logprobs, entropies = rate_tokens(own, states, targets, temperature=0.7, chunk_size=chunk, entropies=True)
        (logprobs - 0.3 * entropies).sum().backward()
        gradients = [states.grad] if is_frozen else [states.grad, own.weight.grad, own.bias.grad]
        found[dtype] = [logprobs.detach(), entropies.detach(), *(gradient.float() for gradient in gradients)]
        assert (own.weight.grad is None) == is_frozen
    for exact, near in zip(*found.values(), strict=True):
        assert (near - exact).norm() < 0.02 * exact.norm()
