"""The probe: what it compares, what it refuses, and that every architecture passes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lens.commands.check_architectures import PROMPTS, check_architecture, make_table
from lens.errors import ConfigError
from lens.models.architectures import ARCHITECTURES, make_random_model
from lens.models.head import PLAIN
from lens.models.logprobs import ForwardPass
from lens.models.packing import share_prompts, shares_prompts
from lens.models.probe import (
    COMPLETION_TOKENS,
    TOLERANCES,
    check_forward_pass,
    coarsest_dtype,
    compare_forward_passes,
    is_within,
    make_probe,
    rate_plainly,
)
from lens.models.shared_prompts import SHARED_PROMPTS
from lens.problems.prompts import Prompt
from tests.support.losses import plain_pass

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
CAPPED = ["gemma2", "vaultgemma", "recurrent_gemma"]
SCALED = ["cohere", "cohere2", "granite", "granitemoe", "falcon_h1", "hyperclovax", "minicpm3"]
STATEFUL = [  # recurrent or convolutional layers
    "lfm2", "bamba", "jamba", "qwen3_next", "qwen3_5_text", "falcon_h1", "recurrent_gemma", "nemotron_h",
    "granitemoehybrid", "olmo_hybrid", "minimax",
]  # fmt: skip


def hot_pass() -> ForwardPass:
    return plain_pass(temperature=0.7, logits_chunk_size=5)


# --- every architecture ---


def rows_of_the_page() -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in PAGE.open() if line.startswith("|")]
    return {row[0]: row for row in rows[2:]}


def test_the_page_lists_every_architecture():
    assert list(rows_of_the_page()) == list(ARCHITECTURES)
    assert len(ARCHITECTURES) >= 30


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_computed_right_or_refused(name):
    checked = check_architecture(name)
    assert is_within(checked.difference, TOLERANCES["float32"])
    (row,) = make_table([checked]).values.tolist()
    told = rows_of_the_page()[name]
    measured = {3, 4, 5}  # numbers whose last digits are the machine's
    assert [cell for n, cell in enumerate(row) if n not in measured] == [
        cell for n, cell in enumerate(told) if n not in measured
    ]


@pytest.mark.parametrize("name", STATEFUL)
def test_models_with_a_state_do_not_share_prompts(name):
    model = make_random_model(name)
    assert not share_prompts(model) and not shares_prompts(model)
    assert model.config._attn_implementation == "sdpa"


# --- what it finds ---


@pytest.mark.parametrize("name", CAPPED + SCALED)
def test_a_head_that_forgets_the_transform_is_refused(name, monkeypatch):
    model = make_random_model(name)
    share_prompts(model)
    (found,) = compare_forward_passes(model, [hot_pass()], make_probe(PROMPTS))
    assert is_within(found, TOLERANCES["float32"])
    monkeypatch.setattr("lens.models.logprobs.find_logit_transform", lambda config: PLAIN)
    with pytest.raises(ConfigError, match=r"model\.attention='\w+': must be eager: training and"):
        check_forward_pass(model, hot_pass(), make_probe(PROMPTS))
    for autocast in (None, "bfloat16"):
        forward_pass = plain_pass(temperature=0.7, autocast=autocast)
        (found,) = compare_forward_passes(model, [forward_pass], make_probe(PROMPTS))
        assert not is_within(found, TOLERANCES[coarsest_dtype(model, autocast)])


@pytest.mark.parametrize("name", ["lfm2", "jamba", "qwen3_next", "falcon_h1"])
def test_prompts_that_are_shared_where_a_layer_leaks_are_refused(name):
    model = make_random_model(name)
    model.set_attn_implementation(SHARED_PROMPTS)
    with pytest.raises(ConfigError, match="must be eager"):
        check_forward_pass(model, hot_pass(), make_probe(PROMPTS))


def test_a_wrong_gradient_alone_is_refused(tiny, monkeypatch):
    model, _ = tiny
    rate = ForwardPass.rate_packs

    def half_the_gradient(*arguments, **options):
        values = rate(*arguments, **options)
        return values._replace(logprobs=values.logprobs.detach() / 2 + values.logprobs / 2)

    monkeypatch.setattr(ForwardPass, "rate_packs", half_the_gradient)
    (found,) = compare_forward_passes(model, [hot_pass()], make_probe(PROMPTS))
    assert found.largest < 1e-4 and found.gradient == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(ConfigError, match=r"by 0\.5 of the gradient"):
        check_forward_pass(model, hot_pass(), make_probe(PROMPTS))


def test_what_is_not_a_number_is_refused(tiny):
    model = make_random_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(ConfigError, match="differ by up to nan"):
        check_forward_pass(model, hot_pass(), make_probe(PROMPTS))


def test_the_probe_leaves_weights_and_gradients_as_they_were(tiny):
    model, _ = tiny
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_forward_pass(model, hot_pass(), make_probe(PROMPTS))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# --- how it is made ---


def test_the_reference_is_the_softmax_of_the_models_logits():
    model = make_random_model("gemma2")
    rollouts = make_probe(PROMPTS)
    found = rate_plainly(model, rollouts, 0.7)
    prompt, expected = list(rollouts.prompts[0].token_ids), []
    for row, length in enumerate(COMPLETION_TOKENS):
        ids = rollouts.completion_ids[row, :length].tolist()
        logits = model(torch.tensor([prompt + ids])).logits[0].double() / 0.7  # alone, without padding
        for place, token in enumerate(ids, start=len(prompt) - 1):
            expected.append(logits[place, token] - logits[place].exp().sum().log())
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=0, atol=1e-4)


def test_the_probe_is_the_shortest_prompt_with_tokens_of_the_longest():
    prompts = [Prompt("a", (1, 2, 3)), Prompt("b", (7, 8)), Prompt("c", (4, 5, 6, 9))]
    probe = make_probe(prompts)
    assert probe.prompts == [prompts[1]] and probe.lengths.tolist() == list(COMPLETION_TOKENS)
    assert probe.completion_ids[0].tolist() == [4, 5, 6, 9, 4, 5, 6, 9]
    assert probe.completion_ids[1].tolist() == [4, 5, 6, 9, 4, 0, 0, 0]


def test_the_coarsest_data_type_decides():
    model = make_random_model("llama")
    assert coarsest_dtype(model, None) == "float32" and coarsest_dtype(model, "bfloat16") == "bfloat16"
    assert coarsest_dtype(model.double(), None) == "float64" and coarsest_dtype(model.bfloat16(), None) == "bfloat16"


@pytest.mark.parametrize(
    "attention, dtype, autocast, says",
    [
        ("sdpa", "float32", None, r"model\.attention='sdpa': must be eager"),
        ("eager", "float32", None, r"model\.name_or_path='': must be another model"),
        ("eager", "bfloat16", None, r"model\.dtype='bfloat16': must be float32"),
    ],
)
def test_the_refusal_says_what_to_set(attention, dtype, autocast, says):
    model = make_random_model("cohere", attention=attention).to(getattr(torch, dtype))
    model.config.logit_scale = 1.0  # what the head reads; the model itself keeps its own
    with pytest.raises(ConfigError, match=says + ": training and the own forward pass of CohereForCausalLM"):
        check_forward_pass(model, hot_pass(), make_probe(PROMPTS))


def test_autocast_that_goes_wrong_by_itself_is_named(monkeypatch):
    model = make_random_model("llama")
    rate = ForwardPass.rate_packs

    def shifted(forward_pass, *arguments, **options):
        values = rate(forward_pass, *arguments, **options)
        return values if forward_pass.autocast is None else values._replace(logprobs=values.logprobs - 1)

    monkeypatch.setattr(ForwardPass, "rate_packs", shifted)
    with pytest.raises(ConfigError, match=r"trainer\.memory\.autocast='bfloat16': must be null"):
        check_forward_pass(model, plain_pass(autocast="bfloat16"), make_probe(PROMPTS))
