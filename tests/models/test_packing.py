"""Micro-batches within their budget, and completions in one row that do not see each other."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lens.errors import ConfigError
from lens.models.loading import load_model
from lens.models.packing import lay_out, measure_balance, split_into_microbatches
from lens.sampling.rollouts import Rollouts
from tests.support.losses import plain_pass
from tests.support.rollouts import GENERATIONS, random_rollouts
from tests.support.rounding import TOLERANCE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_microbatches_cover_every_row_once_within_the_budget(tiny, data):
    model, _ = tiny
    prompt_lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    count = GENERATIONS * len(prompt_lengths)
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
    rows = data.draw(st.permutations(range(count)))[: data.draw(st.integers(0, count))]
    budget = max(prompt_lengths[row // GENERATIONS] + lengths[row] for row in range(count)) + data.draw(
        st.integers(0, 200)
    )
    rollouts = random_rollouts(prompt_lengths, lengths)
    parts = list(split_into_microbatches(model, rollouts, rows, budget))
    assert sorted(row for packs in parts for pack in packs for row in pack) == sorted(rows)
    for packs in parts:
        questions = [{row // GENERATIONS for row in pack} for pack in packs]
        assert all(len(each) == 1 for each in questions)
        members = [row for pack in packs for row in pack]
        assert (
            members
            and len(members) * max(prompt_lengths[row // GENERATIONS] + lengths[row] for row in members) <= budget
        )
    assert list(split_into_microbatches(model, rollouts, rows[::-1], budget)) == parts


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_several_processes_get_every_row_once_within_the_budget(tiny, data):
    model, _ = tiny
    prompt_lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    count, processes = GENERATIONS * len(prompt_lengths), data.draw(st.integers(2, 5))
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
    rows = data.draw(st.permutations(range(count)))[: data.draw(st.integers(0, count))]
    sizes = [prompt_lengths[row // GENERATIONS] + lengths[row] for row in range(count)]
    budget = max(sizes) + data.draw(st.integers(0, 200))
    rollouts = random_rollouts(prompt_lengths, lengths)
    parts = split_into_microbatches(model, rollouts, rows, budget, processes=processes)
    assert sorted(row for packs in parts for pack in packs for row in pack) == sorted(rows)
    for packs in parts:
        members = [row for pack in packs for row in pack]
        assert members and len(members) * max(sizes[row] for row in members) <= budget
    assert split_into_microbatches(model, rollouts, rows[::-1], budget, processes=processes) == parts


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_get_about_equally_many_tokens(tiny, processes):
    """Lengths as of a reasoning model: most are short, some reach the limit."""
    model, _ = tiny
    generator = torch.Generator().manual_seed(0)
    drawn = torch.empty(256).log_normal_(5.0, 0.8, generator=generator).clamp(5, 600).long()
    prompts = torch.randint(20, 200, (256 // GENERATIONS,), generator=generator)
    rollouts = random_rollouts(prompts.tolist(), drawn.tolist())
    whole = list(split_into_microbatches(model, rollouts, range(256), 4096))
    parts = split_into_microbatches(model, rollouts, range(256), 4096, processes=processes)
    assert len(parts) <= (len(whole) // processes + 2) * processes
    assert unevenness(model, rollouts, parts, processes) < 1.1
    assert unevenness(model, rollouts, whole, processes) >= unevenness(model, rollouts, parts, processes)


@pytest.mark.skipif("LENS_SHARED" not in os.environ, reason="LENS_SHARED is not set: no real answers to deal")
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_get_about_equally_many_tokens_of_real_answers(tiny, processes):
    """8 answers of a language model to each of 50 problems of MATH; a token for each 4 characters."""
    model, _ = tiny
    file = Path(os.environ["LENS_SHARED"]) / "data" / "model_completions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    prompts = [len(row["problem"]) // 4 for row in rows[::8]]
    rollouts = random_rollouts(prompts, [len(row["completion"]) // 4 for row in rows])
    balance = measure_balance(model, rollouts, range(len(rows)), 4096, processes)
    print(f"{processes} processes: the largest number of tokens is {balance:.4f} times the mean")
    assert balance < 1.1


def unevenness(model: PreTrainedModel, rollouts: Rollouts, parts: list, processes: int) -> float:
    """Tokens that the slowest of each turn computes, over the mean of all processes."""
    of_each = [
        sum(
            len(rollouts.prompts[pack[0] // GENERATIONS].token_ids) + int(rollouts.lengths[pack].sum()) for pack in part
        )
        for part in parts
    ]
    assert model.config._attn_implementation.endswith("shared_prompts")  # a prompt counts once for a pack
    return sum(max(of_each[i : i + processes]) for i in range(0, len(parts), processes)) * processes / sum(of_each)


def test_microbatches_are_no_more_than_it_takes(tiny, rollouts):
    model, _ = tiny
    # With their prompts the longest of each question have 9, 8 and 17 tokens, and the last question's other has 10.
    assert list(split_into_microbatches(model, rollouts, range(6), 10_000)) == [[[5, 4], [0, 1], [2, 3]]]
    assert list(split_into_microbatches(model, rollouts, range(6), 30)) == [[[5]], [[4], [0, 1]], [[2, 3]]]
    assert list(split_into_microbatches(model, rollouts, range(6), 17)) == [[[5]], [[4]], [[0]], [[2, 3]], [[1]]]


def name_attention(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The model, whose attention is called so; by the config's setter, kernels would be asked for."""
    model.config._attn_implementation_internal = name
    return model


def test_an_attention_that_takes_no_mask_shares_no_prompt(tiny, rollouts):
    model = name_attention(tiny[0], "flash_attention_2")
    assert [len(pack) for packs in split_into_microbatches(model, rollouts, range(6), 10_000) for pack in packs] == [
        1
    ] * 6


@pytest.fixture
def flat(tiny) -> Iterator[PreTrainedModel]:
    """The model with an attention that is called flash, and computes on a CPU: transformers' contract is the same."""
    name, known = "flash_on_cpu", (AttentionInterface, AttentionMaskInterface)
    for interface, function in zip(known, (sdpa_attention_forward, sdpa_mask), strict=True):
        interface.register(name, function)
    yield name_attention(tiny[0], name)
    for interface in known:
        del interface._global_mapping[name]


def test_sequences_in_one_row_do_not_see_each_other(tiny_folder, flat, rollouts):
    padded, _ = load_model(str(tiny_folder), attention="sdpa")
    packs = [[row] for row in range(6)]
    layout = lay_out(rollouts, packs, flat=True)
    lengths = [len(rollouts.prompts[row // GENERATIONS].token_ids) + int(rollouts.lengths[row]) for row in range(6)]
    assert layout.ids.shape == (1, sum(lengths))
    assert layout.sharing is None
    forward_pass = plain_pass(temperature=0.9, logits_chunk_size=7)
    expected, values = (forward_pass.rate_packs(each, rollouts, packs) for each in (padded, flat))
    torch.testing.assert_close(values.logprobs, expected.logprobs, atol=TOLERANCE["float32"], rtol=0)
    torch.testing.assert_close(values.entropies, expected.entropies, atol=TOLERANCE["float32"], rtol=0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_row_without_padding_is_filled_to_the_budget(flat, data):
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=GENERATIONS, max_size=GENERATIONS * 4))
    lengths = lengths[: len(lengths) // GENERATIONS * GENERATIONS]
    budget = 5 + max(lengths) + data.draw(st.integers(0, 200))
    rollouts = random_rollouts([5] * (len(lengths) // GENERATIONS), lengths)
    parts = list(split_into_microbatches(flat, rollouts, range(len(lengths)), budget))
    sizes = [[5 + lengths[row] for pack in packs for row in pack] for packs in parts]
    assert sorted(row for packs in parts for (row,) in packs) == list(range(len(lengths)))
    assert all(sum(each) <= budget for each in sizes)
    assert all(sum(each) + after[0] > budget for each, after in itertools.pairwise(sizes))


def test_a_row_beyond_the_budget_is_refused_with_its_size(tiny, rollouts):
    model, _ = tiny
    with pytest.raises(ConfigError, match="max_tokens_per_microbatch=16: must be at least 17") as caught:
        list(split_into_microbatches(model, rollouts, range(6), 16))
    assert caught.value.key == "trainer.memory.max_tokens_per_microbatch"
