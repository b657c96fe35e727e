"""Completions that share their prompt against each alone in its row, in models of several kinds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LlamaModel,
)

from lens.models.packing import share_prompts
from lens.models.prompt_sharing import Sharing
from lens.models.shared_prompts import SHARED_PROMPTS, Collect, Spread, make_window_mask
from tests.support.losses import plain_pass
from tests.support.models import MODELS, alone, gradients_of
from tests.support.rollouts import ALL, LENGTHS, PROMPT_LENGTHS, random_rollouts
from tests.support.rounding import TOLERANCE


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_completions_that_share_a_prompt_are_as_if_alone(make):
    torch.manual_seed(0)
    model = make().eval().double()  # but for the norms of some, which transformers computes in float32
    assert model.config._attn_implementation == "sdpa"
    expected = alone(model)
    gradient = gradients_of(model, expected)
    model.set_attn_implementation(SHARED_PROMPTS)
    torch.testing.assert_close(alone(model), expected)  # without anything shared it is transformers' own
    rollouts = random_rollouts(PROMPT_LENGTHS, LENGTHS)
    for choices in ({}, {"gradient_checkpointing": True}):
        values = plain_pass(temperature=0.9, logits_chunk_size=5, **choices).rate_packs(model, rollouts, ALL)
        torch.testing.assert_close(values.logprobs, expected, atol=TOLERANCE["float32"], rtol=0)
        assert (gradients_of(model, values.logprobs) - gradient).norm() < TOLERANCE["float32"] * gradient.norm()


def test_a_prompt_is_computed_once():
    torch.manual_seed(0)
    model = MODELS["fewer key heads"]().eval()
    seen = []
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[:2]))
    rollouts = random_rollouts((40,), (3,) * 8)
    for name, tokens in (("sdpa", (8, 43)), (SHARED_PROMPTS, (1, 40 + 8 * 3))):
        model.set_attn_implementation(name)
        plain_pass().rate_packs(model, rollouts, [list(range(8))])
        assert seen.pop() == tokens


class Forgetful(LlamaModel):
    """A model that takes keywords for its attention and does not hand them on."""

    def forward(self, *args, sharing=None, **kwargs):
        return super().forward(*args, **kwargs)


class Ignorant(LlamaModel):
    """A model that takes no argument that it does not know."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=None):
        return super().forward(input_ids, attention_mask, position_ids, use_cache=use_cache)


@pytest.mark.parametrize("kind", [Forgetful, Ignorant])
def test_a_model_that_does_not_hand_on_what_is_shared_shares_nothing(kind):
    model = MODELS["fewer key heads"]().eval()
    model.model.__class__ = kind
    assert not share_prompts(model) and model.config._attn_implementation == "sdpa"
    model.model.__class__ = LlamaModel
    assert share_prompts(model) and model.config._attn_implementation == SHARED_PROMPTS


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
