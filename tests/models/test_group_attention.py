"""Attention by matrix products against torch's own of each completion alone behind its prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lens.models.group_attention import GroupAttention, Scratch, products_at_the_speed_of
from lens.models.packing import lay_out
from lens.models.prompt_sharing import Sharing
from lens.models.shared_prompts import SHARED_PROMPTS, shared_prompts_attention
from tests.support.losses import plain_pass
from tests.support.models import MODELS, alone, gradients_of
from tests.support.rollouts import ALL, LENGTHS, PROMPT_LENGTHS, random_rollouts

HEADS, KEY_HEADS, CHANNELS = 4, 2, 3
Packs = list[tuple[int, list[int]]]


def row_of(packs: Packs, seed: int = 0, channels: int = CHANNELS) -> list[Tensor]:
    """Queries, keys and values of a row, and what the output's gradient is."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(prompt + sum(lengths) for prompt, lengths in packs)
    shapes = [(tokens, heads, channels) for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def each_alone(packs: Packs, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """The row's output, of a sequence after the other; a prompt's from its first completion."""
    outputs, start = [], 0
    for prompt, lengths in packs:
        own = start + prompt
        for number, length in enumerate(lengths):
            places = torch.cat([torch.arange(start, start + prompt), torch.arange(own, own + length)])
            sequence = (values[places].transpose(0, 1)[None] for values in (query, key, value))
            output = scaled_dot_product_attention(*sequence, is_causal=True, scale=scaling, enable_gqa=True)
            outputs.append(output[0].transpose(0, 1)[0 if number == 0 else prompt :])
            own += length
        start = own
    return torch.cat(outputs)


def with_gradients(output: Tensor, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The output and the gradients of the inputs."""
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


@settings(max_examples=30)
@given(
    packs=st.lists(
        st.tuples(st.integers(1, 140), st.lists(st.integers(1, 140), min_size=1, max_size=4)), min_size=1, max_size=3
    ),
    scaling=st.sampled_from([0.5, 1.3]),
)
def test_attention_by_products_is_that_of_each_completion_alone(packs, scaling):
    *inputs, gradient = row_of(packs)
    inputs = [values.requires_grad_() for values in inputs]
    groups, scratch = Sharing.of(*zip(*packs, strict=True)).groups, Scratch()
    expected = with_gradients(each_alone(packs, *inputs, scaling), inputs, gradient)
    for _ in range(2):  # what a layer leaves in the scratch is nothing to the next
        found = with_gradients(GroupAttention.apply(*inputs, groups, scaling, scratch), inputs, gradient)
        for own, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(own, reference)


def test_bfloat16_is_no_further_from_the_truth_than_with_torchs_own():
    packs = [(95, [128, 64, 100, 30]), (40, [70, 128])]
    *inputs, gradient = row_of(packs, channels=64)

    def errors(attention, dtype):
        cast = [values.to(dtype).requires_grad_() for values in inputs]
        found = with_gradients(attention(*cast), cast, gradient.to(dtype))
        return [((own - truth).norm() / truth.norm()).item() for own, truth in zip(found, exact, strict=True)]

    leaves = [values.to(torch.bfloat16).double().requires_grad_() for values in inputs]
    exact = with_gradients(each_alone(packs, *leaves, 1 / 8), leaves, gradient.to(torch.bfloat16).double())
    groups = Sharing.of(*zip(*packs, strict=True)).groups
    products = errors(lambda *row: GroupAttention.apply(*row, groups, 1 / 8, Scratch()), torch.bfloat16)
    kernel = errors(lambda *row: each_alone(packs, *row, 1 / 8), torch.bfloat16)
    assert all(own <= 1.05 * other for own, other in zip(products, kernel, strict=True)), (products, kernel)
    assert max(products) < 0.01


def test_the_setting_of_matrix_products_is_put_back():
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    packs = [(3, [2, 2])]
    inputs = [values.bfloat16() for values in row_of(packs)[:3]]
    GroupAttention.apply(*inputs, Sharing.of(*zip(*packs, strict=True)).groups, 1.0, Scratch())
    assert setting.fp32_precision == before


def test_the_setting_is_put_back_after_a_failure():
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    with pytest.raises(RuntimeError), products_at_the_speed_of(torch.bfloat16):
        assert setting.fp32_precision == "bf16"
        raise RuntimeError
    assert setting.fp32_precision == before
    with products_at_the_speed_of(torch.float32):
        assert setting.fp32_precision == before


def test_what_is_in_the_scratch_is_nothing_to_the_result():
    packs = [(3, [5, 2]), (70, [66])]
    *inputs, gradient = row_of(packs)
    inputs = [values.requires_grad_() for values in inputs]
    groups, scratch = Sharing.of(*zip(*packs, strict=True)).groups, Scratch()
    expected = with_gradients(GroupAttention.apply(*inputs, groups, 1.0, scratch), inputs, gradient)
    for memory in scratch.memory.values():
        memory.fill_(torch.nan)
    output = GroupAttention.apply(*inputs, groups, 1.0, scratch)
    for memory in scratch.memory.values():
        memory.fill_(torch.nan)
    found = with_gradients(output, inputs, gradient)
    assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "choice", [["gradient_checkpointing"], ["torch_compile"], ["gradient_checkpointing", "torch_compile"]]
)
def test_layers_computed_again_or_compiled_are_the_same_in_bfloat16(choice):
    torch.manual_seed(0)
    model = MODELS["fewer key heads"]().eval()
    model.set_attn_implementation(SHARED_PROMPTS)
    rollouts = random_rollouts(PROMPT_LENGTHS, LENGTHS)
    forward_pass = plain_pass(temperature=0.9, logits_chunk_size=5, autocast="bfloat16")
    plain = forward_pass.rate_packs(model, rollouts, ALL)
    expected = gradients_of(model, plain.logprobs)
    values = replace(forward_pass, **dict.fromkeys(choice, True)).rate_packs(model, rollouts, ALL)
    torch.testing.assert_close(values.logprobs, plain.logprobs, atol=0.02, rtol=0)
    assert (gradients_of(model, values.logprobs) - expected).norm() < 0.02 * expected.norm()
    with torch.no_grad():
        unlearned = forward_pass.rate_packs(model, rollouts, ALL)
    assert torch.equal(unlearned.logprobs, plain.logprobs)
    assert not unlearned.logprobs.requires_grad and not unlearned.entropies.requires_grad


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_a_model_in_bfloat16_has_nearly_the_values_of_float32(make, autocast):
    torch.manual_seed(0)
    model = make().eval()
    expected = alone(model)
    gradient = gradients_of(model, expected)
    model.set_attn_implementation(SHARED_PROMPTS)
    if autocast is None:
        model.to(torch.bfloat16)
    rollouts = random_rollouts(PROMPT_LENGTHS, LENGTHS)
    values = plain_pass(temperature=0.9, logits_chunk_size=5, autocast=autocast).rate_packs(model, rollouts, ALL)
    torch.testing.assert_close(values.logprobs.float(), expected, atol=0.05, rtol=0)
    assert (gradients_of(model, values.logprobs) - gradient).norm() < 0.05 * gradient.norm()


@pytest.mark.parametrize(
    ("dtype", "options", "by_products"),
    [
        (torch.bfloat16, {}, True),
        (torch.bfloat16, {"dropout": 0.0, "scaling": 0.3}, True),
        (torch.float32, {}, False),
        (torch.bfloat16, {"sliding_window": 4}, False),
        (torch.bfloat16, {"dropout": 0.5}, False),
    ],
)
def test_products_are_for_plain_attention_in_bfloat16(dtype, options, by_products):
    rollouts = random_rollouts(PROMPT_LENGTHS, LENGTHS)
    sharing = lay_out(rollouts, ALL, sharing=True).sharing
    row = [torch.randn(1, HEADS, len(sharing.home), 8, dtype=dtype) for _ in range(3)]
    module = torch.nn.Module()
    module.training = False
    output, _ = shared_prompts_attention(module, *row, None, sharing, **options)
    assert output.shape == (1, len(sharing.home), HEADS, 8)
    assert bool(sharing.scratch.memory) is by_products
