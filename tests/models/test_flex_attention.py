"""FlexAttention over shared prompts against sdpa: its rule, its values, and where it is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask
from torch.nn.functional import scaled_dot_product_attention

from lens.errors import ConfigError
from lens.models.flex_attention import make_rule
from lens.models.loading import load_model
from lens.models.prompt_sharing import Sharing
from lens.models.shared_prompts import FLEX_SHARED_PROMPTS, SHARED_PROMPTS, shared_prompts_attention
from tests.support.losses import plain_pass
from tests.support.models import MODELS
from tests.support.rollouts import ALL, LENGTHS, PROMPT_LENGTHS, random_rollouts
from tests.support.rounding import TOLERANCE

PACKS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=4)), min_size=1, max_size=4
)
WINDOWS = st.none() | st.integers(1, 8)


def dense_rule(prompts, lengths, window):
    """Who sees whom, pair by pair: each token is (pack, completion or None, position)."""
    tokens = []
    for pack, (prompt, each) in enumerate(zip(prompts, lengths, strict=True)):
        tokens += [(pack, None, place) for place in range(prompt)]
        tokens += [(pack, answer, prompt + place) for answer, n in enumerate(each) for place in range(n)]

    def sees(query, key):
        far = window is not None and query[2] - key[2] >= window
        return query[0] == key[0] and key[1] in (None, query[1]) and key[2] <= query[2] and not far

    return torch.tensor([[sees(query, key) for key in tokens] for query in tokens])


@given(packs=PACKS, window=WINDOWS)
def test_a_token_sees_its_prompt_and_its_own_completion(packs, window):
    prompts, lengths = zip(*packs, strict=True)
    rule, tokens = make_rule(Sharing.of(prompts, lengths), window), sum(prompts) + sum(map(sum, lengths))
    mask = create_mask(rule, None, None, tokens, tokens, device="cpu")[0, 0]
    assert torch.equal(mask, dense_rule(prompts, lengths, window))


@given(packs=PACKS, window=WINDOWS)
def test_the_rule_gives_the_values_and_gradients_of_sdpa_over_copies(packs, window):
    prompts, lengths = zip(*packs, strict=True)
    sharing = Sharing.of(prompts, lengths)
    tokens = len(sharing.home)
    row = [torch.randn(1, heads, tokens, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    copied, _ = shared_prompts_attention(module, *row, None, sharing=sharing, sliding_window=window)
    mask = create_mask(make_rule(sharing, window), None, None, tokens, tokens, device="cpu")
    at_once = scaled_dot_product_attention(*row, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    weights = torch.randn_like(copied)
    gradients = [torch.autograd.grad((values * weights).sum(), row) for values in (copied, at_once)]
    torch.testing.assert_close(copied, at_once)
    torch.testing.assert_close(*gradients)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_model_says_the_same_with_flex_attention(make):
    torch.manual_seed(0)
    model, rollouts = make().eval(), random_rollouts(PROMPT_LENGTHS, LENGTHS)
    found = {}
    for name in (SHARED_PROMPTS, FLEX_SHARED_PROMPTS):
        model.set_attn_implementation(name)
        found[name] = plain_pass(temperature=0.9).rate_packs(model, rollouts, ALL).logprobs
    gap = (found[SHARED_PROMPTS] - found[FLEX_SHARED_PROMPTS]).abs().max()
    assert 0 < gap < TOLERANCE["float32"]  # another order of sums, so it has run


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs FlexAttention")
def test_flex_attention_is_refused_on_a_cpu(tiny_folder):
    with pytest.raises(ConfigError, match=r"model\.attention='flex_attention'.*does not run here"):
        load_model(str(tiny_folder), attention="flex_attention")
