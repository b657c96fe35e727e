"""The head: what it computes, in how many pieces, and with which gradient."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3Config,
    GraniteConfig,
    HyperCLOVAXConfig,
    Qwen2Config,
    RecurrentGemmaConfig,
)

from lens.models.head import PLAIN, HeadValues, LogitTransform, find_logit_transform, rate_tokens
from tests.support.losses import plain_pass
from tests.support.rollouts import ALL, LENGTHS


class Products(TorchDispatchMode):
    """The rows of every matrix product whose result has so many columns."""

    def __init__(self, columns: int):
        super().__init__()
        self.columns, self.rows = columns, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.mm.out, torch.ops.aten.addmm.out) and result.shape[1] == self.columns:
            self.rows.append(len(result))
        return result


def test_the_head_sees_completion_tokens_alone(tiny, rollouts):
    model, _ = tiny
    with Products(model.config.vocab_size) as seen:
        values = plain_pass(logits_chunk_size=10).rate_packs(model, rollouts, ALL)
    assert seen.rows == [10, 10, 7] and sum(seen.rows) == sum(LENGTHS)
    with seen:
        values.logprobs.sum().backward()  # computes every chunk once more, and nothing else
    assert sorted(seen.rows) == [7, 7, 10, 10, 10, 10]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("divisor", [1.0, 0.6])
def test_the_head_has_the_gradient_that_its_values_have(with_bias, cap, divisor):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 3), (7, 3), (7,))
    )
    targets = torch.tensor([0, 6, 2, 2, 5])
    bias = bias if with_bias else None
    logits = torch.nn.functional.linear(hidden, weight, bias) / divisor
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    drawn = torch.distributions.Categorical(logits=logits)
    logprobs, entropies = HeadValues.apply(hidden, weight, bias, targets, divisor, cap, True, 2)
    torch.testing.assert_close(logprobs, drawn.log_prob(targets))
    torch.testing.assert_close(entropies, drawn.entropy())
    for inputs in ((hidden, weight, bias, targets, divisor, cap, entropies, 2) for entropies in (True, False)):
        assert torch.autograd.gradcheck(lambda *x: [v for v in HeadValues.apply(*x) if v is not None], inputs)


@pytest.mark.parametrize("transform", [PLAIN, LogitTransform(scale=0.0625), LogitTransform(2.0, 3.0)])
def test_scale_and_soft_cap_come_before_the_temperature(transform):
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(3, 7, bias=False, dtype=torch.float64)
    hidden = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 6, 2, 2, 5])
    options = {"temperature": 0.7, "chunk_size": 2, "entropies": True, "transform": transform}
    logprobs, entropies = rate_tokens(head, hidden, targets, **options)
    logits = transform.scale * (hidden @ head.weight.T)
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    drawn = torch.distributions.Categorical(logits=logits / 0.7)
    torch.testing.assert_close(logprobs, drawn.log_prob(targets))
    torch.testing.assert_close(entropies, drawn.entropy())


def test_configs_tell_the_transform():
    for config, transform in (
        (Gemma2Config(final_logit_softcapping=30.0), LogitTransform(cap=30.0)),
        (RecurrentGemmaConfig(logits_soft_cap=20.0), LogitTransform(cap=20.0)),
        (CohereConfig(logit_scale=0.0625), LogitTransform(0.0625)),
        (GraniteConfig(logits_scaling=8.0), LogitTransform(0.125)),
        (HyperCLOVAXConfig(logits_scaling=8.0), LogitTransform(8.0)),  # it multiplies
        (FalconH1Config(lm_head_multiplier=0.5), LogitTransform(0.5)),
        (Gemma3Config(text_config={"final_logit_softcapping": 30.0}), LogitTransform(cap=30.0)),
        (Qwen2Config(), PLAIN),
    ):
        assert find_logit_transform(config) == transform


@pytest.mark.parametrize("chunk", [3, 5])
@pytest.mark.parametrize("with_entropies", [False, True])
def test_the_head_is_the_same_in_several_chunks_and_pieces(with_entropies, chunk):
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 2), (2**19, 2), (2**19,))
    ]  # two tokens a piece
    targets = torch.tensor([0, 2**19 - 1, 3, 3, 77])
    drawn = torch.distributions.Categorical(logits=torch.nn.functional.linear(*inputs))
    expected = drawn.log_prob(targets) + (drawn.entropy() if with_entropies else 0)
    logprobs, entropies = HeadValues.apply(*inputs, targets, 1.0, None, with_entropies, chunk)
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
    torch.manual_seed(0)
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
