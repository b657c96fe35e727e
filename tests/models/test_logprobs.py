"""Log-probabilities in little memory against the plain computation, micro-batches, and models that cannot be used."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lens.errors import ConfigError
from lens.models.layers import check_layers, use_changed_layers
from lens.models.loading import load_model
from lens.models.logprobs import rate_completions, rate_rollouts
from lens.models.packing import lay_out, split_into_microbatches
from lens.problems.prompts import Prompt
from lens.sampling.rollouts import Rollouts
from lens.sampling.transformers import TransformersSampler

GENERATIONS = 2
PROMPT_LENGTHS = (5, 1, 9)
LENGTHS = (4, 1, 7, 6, 1, 8)
ALL = [[0, 1], [2], [3], [5, 4]]


def random_rollouts(prompt_lengths: Sequence[int], lengths: Sequence[int], vocabulary: int = 100) -> Rollouts:
    """Completions of random tokens; what is beyond their lengths is random too, and must not matter."""
    generator = torch.Generator().manual_seed(0)

    def tokens(*shape: int) -> Tensor:
        return torch.randint(0, vocabulary, shape, generator=generator)

    return Rollouts(
        prompts=[Prompt(f"p{number}", tuple(tokens(n).tolist())) for number, n in enumerate(prompt_lengths)],
        num_generations=len(lengths) // len(prompt_lengths),
        completion_ids=tokens(len(lengths), max(lengths) + 2),
        logprobs=torch.zeros(len(lengths), max(lengths) + 2),
        lengths=torch.tensor(lengths),
        finish_reasons=["stop"] * len(lengths),
        texts=[""] * len(lengths),
    )


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return random_rollouts(PROMPT_LENGTHS, LENGTHS)


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


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("packs", [[[3], [0], [5], [1]], [[1, 0], [3, 2], [4, 5]], [[4], [2, 3], [1]]])
def test_values_and_gradients_are_those_of_dense_logits(tiny, rollouts, temperature, chunk, packs):
    model, _ = tiny
    rows = [row for pack in packs for row in pack]
    values = rate_completions(model, rollouts, packs, temperature=temperature, logits_chunk_size=chunk)
    dense = [dense_values(model, rollouts, row, temperature) for row in rows]
    logprobs, entropies = (torch.cat(parts) for parts in zip(*dense, strict=True))
    torch.testing.assert_close(values.logprobs, logprobs, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(values.entropies, entropies, atol=2e-6, rtol=1e-5)
    expected = gradients_of(model, logprobs)
    assert (gradients_of(model, values.logprobs) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("chunk", [4, 1000])
def test_entropies_carry_gradients_and_are_left_out_where_nobody_wants_them(tiny, rollouts, chunk):
    model, _ = tiny
    packs, choices = [[1, 0], [4]], {"temperature": 0.7, "logits_chunk_size": chunk}

    def dense() -> tuple[Tensor, ...]:
        each = [dense_values(model, rollouts, row, 0.7) for row in (1, 0, 4)]
        return tuple(torch.cat(values) for values in zip(*each, strict=True))

    for share in (0, 2):  # of the log-probabilities
        logprobs, entropies = dense()
        expected = gradients_of(model, entropies + share * logprobs)
        values = rate_completions(model, rollouts, packs, **choices)
        found = gradients_of(model, values.entropies + share * values.logprobs)
        assert (found - expected).norm() < 1e-5 * expected.norm()
    without = rate_completions(model, rollouts, packs, **choices, entropies=False)
    assert without.entropies is None and torch.equal(without.logprobs, values.logprobs)


def kept_bytes(model: PreTrainedModel, rollouts: Rollouts, **choices: bool) -> int:
    """What a forward pass keeps for the backward pass, weights aside."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values = rate_completions(model, rollouts, ALL, temperature=1.0, logits_chunk_size=4, **choices)
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
    model = OPTForCausalLM(OPTConfig(vocab_size=100, num_attention_heads=2, dropout=0.5, **sizes)).eval()
    choices = {"temperature": 1.0, "logits_chunk_size": 5}
    expected = rate_completions(model, rollouts, ALL, **choices).logprobs
    again = rate_completions(model, rollouts, ALL, **choices, gradient_checkpointing=True).logprobs
    torch.testing.assert_close(again, expected)
    difference = gradients_of(model, again) - gradients_of(model, expected)
    assert (
        difference.norm()
        < 1e-6 * gradients_of(model, rate_completions(model, rollouts, ALL, **choices).logprobs).norm()
    )


def test_compiled_layers_say_the_same_and_are_compiled_for_all_lengths(tiny, rollouts):
    model, _ = tiny
    choices = {"temperature": 0.9, "logits_chunk_size": 5}
    torch._dynamo.reset()  # other tests may have compiled the same layers
    counters.clear()
    seen = []
    for lengths in (LENGTHS, (9, 3, 2, 5, 11, 8), (2, 1, 3, 4, 6, 5)):
        some = random_rollouts(PROMPT_LENGTHS, lengths)
        expected = rate_completions(model, some, ALL, **choices)
        gradient = gradients_of(model, expected.logprobs)
        values = rate_completions(model, some, ALL, **choices, torch_compile=True)
        torch.testing.assert_close(values.logprobs, expected.logprobs, atol=1e-5, rtol=0)
        torch.testing.assert_close(values.entropies, expected.entropies, atol=1e-5, rtol=0)
        assert (gradients_of(model, values.logprobs) - gradient).norm() < 1e-5 * gradient.norm()
        seen.append(counters["stats"]["unique_graphs"])
    assert seen[0] > 0 and len(set(seen)) == 1


@pytest.mark.parametrize(
    "choice", [["gradient_checkpointing"], ["torch_compile"], ["gradient_checkpointing", "torch_compile"]]
)
def test_between_updates_the_layers_are_as_they_were(tiny, rollouts, choice):
    model, tokenizer = tiny
    choices = {"temperature": 1.0, "logits_chunk_size": 5}

    def sample() -> tuple[list[int], Tensor]:
        sampler = TransformersSampler(model, tokenizer, max_num_seqs=4)
        found = sampler.sample(rollouts.prompts, GENERATIONS, 3, max_completion_length=8)
        return found.completion_ids.tolist(), found.logprobs

    before = sample()
    values = rate_completions(model, rollouts, ALL, **choices, **dict.fromkeys(choice, True))
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
    with pytest.raises(ConfigError, match=rf"trainer\.{key}=True: false: .* OpenAIGPTLMHeadModel"):
        check_layers(model, **{"gradient_checkpointing": False, "torch_compile": False, key: True})


def test_without_gradients_the_values_are_the_same(tiny, rollouts):
    model, _ = tiny
    choices = {"temperature": 0.7, "logits_chunk_size": 5}
    with torch.no_grad():
        values = rate_completions(model, rollouts, ALL, **choices)
    assert not values.logprobs.requires_grad
    torch.testing.assert_close(values.logprobs, rate_completions(model, rollouts, ALL, **choices).logprobs)


def test_values_are_at_least_float32(tiny_folder, rollouts):
    for dtype, expected in (("bfloat16", torch.float32), ("float64", torch.float64)):
        model, _ = load_model(str(tiny_folder), dtype=dtype)
        values = rate_completions(model, rollouts, [[0]], temperature=1.0, logits_chunk_size=8)
        assert values.logprobs.dtype == values.entropies.dtype == expected


class Products(TorchDispatchMode):
    """The rows of every matrix product whose result has so many columns."""

    def __init__(self, columns: int):
        super().__init__()
        self.columns, self.rows = columns, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mm.default and result.shape[1] == self.columns:
            self.rows.append(len(result))
        return result


def test_the_head_sees_completion_tokens_alone(tiny, rollouts):
    model, _ = tiny
    with Products(model.config.vocab_size) as seen:
        values = rate_completions(model, rollouts, ALL, temperature=1.0, logits_chunk_size=10)
    assert seen.rows == [10, 10, 7] and sum(seen.rows) == sum(LENGTHS)
    with seen:
        values.logprobs.sum().backward()  # computes every chunk once more, and nothing else
    assert sorted(seen.rows) == [7, 7, 10, 10, 10, 10]


# --- micro-batches ---


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
    choices = {"temperature": 0.9, "logits_chunk_size": 7}
    expected = rate_completions(padded, rollouts, packs, **choices)
    values = rate_completions(flat, rollouts, packs, **choices)
    torch.testing.assert_close(values.logprobs, expected.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(values.entropies, expected.entropies, atol=1e-5, rtol=0)


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


def test_an_attention_that_is_not_here_is_refused(tiny_folder):
    with pytest.raises(ConfigError, match=r"model\.attention='flash_attention_2': an attention that runs here"):
        load_model(str(tiny_folder), attention="flash_attention_2")


def test_a_row_beyond_the_budget_is_refused_with_its_size(tiny, rollouts):
    model, _ = tiny
    with pytest.raises(ConfigError, match="max_tokens_per_microbatch=16: at least 17") as caught:
        list(split_into_microbatches(model, rollouts, range(6), 16))
    assert caught.value.key == "trainer.memory.max_tokens_per_microbatch"


@pytest.mark.parametrize("max_tokens", [17, 40, 10_000])
def test_recomputed_values_stand_where_their_tokens_stand(tiny, rollouts, max_tokens):
    model, _ = tiny
    table = rate_rollouts(model, rollouts, temperature=0.7, logits_chunk_size=5, max_tokens=max_tokens)
    for row, length in enumerate(LENGTHS):
        for values, expected in zip(table, dense_values(model, rollouts, row, 0.7), strict=True):
            assert values.shape == rollouts.completion_ids.shape and not values.requires_grad
            torch.testing.assert_close(values[row, :length], expected.detach(), atol=2e-6, rtol=1e-5)
            assert (values[row, length:] == 0).all()


# --- loading ---


def test_a_loaded_model_is_in_evaluation_mode_and_in_the_type_asked_for(tiny_folder):
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float64", torch.float64)):
        model, tokenizer = load_model(str(tiny_folder), dtype=name)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert not model.training
        assert tokenizer.eos_token == "<eos>"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to do damage to."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def refusal(name: str, **choices: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_model(name, **choices)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    assert refusal(str(folder)).endswith("a folder in Hugging Face format (it has no config.json)")


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()  # not asked for: pickles run code
    assert refusal(str(folder)).endswith("a folder with weights (it has no *.safetensors)")


def test_broken_weights_are_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.name_or_path" in refusal(str(folder))


def test_a_folder_without_tokenizer_is_refused(folder):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    assert "model.name_or_path" in refusal(str(folder))


def test_a_name_that_nobody_knows_is_refused():
    assert "model.name_or_path='no/such-model'" in refusal("no/such-model")


def test_an_unknown_dtype_is_refused_with_the_known_ones(folder):
    assert refusal(str(folder), dtype="int8") == "model.dtype='int8': one of float32, bfloat16, float64"


def test_a_model_that_cannot_end_an_answer_is_refused(folder):
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / file).read_text())
        settings = {key: value for key, value in settings.items() if not key.startswith("eos_token")}
        (folder / file).write_text(json.dumps(settings))
    assert refusal(str(folder)).endswith("a tokenizer with an end-of-sequence token")


def test_the_generation_config_may_name_the_end_token_alone(folder):
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["eos_token"]
    file.write_text(json.dumps(settings))
    model, tokenizer = load_model(str(folder))
    assert tokenizer.eos_token_id is None
    assert model.generation_config.eos_token_id is not None
