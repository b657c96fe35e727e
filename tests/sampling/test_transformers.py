"""The embedded engine with the tiny model: what it samples, with what probability, and what that must not depend on."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from lens.commands.check_architectures import PROMPTS, OnlyIds
from lens.errors import ConfigError
from lens.models.architectures import make_random_model
from lens.problems import load_problems
from lens.problems.prompts import Prompt, PromptFormat, encode_problems
from lens.sampling.rollouts import geometric_mean_probability
from lens.sampling.transformers import TransformersSampler
from lens.seeding import derive_seed
from lens.training.weight_sync import probe_engine
from tests.support.gradients import norms_in_their_own_type
from tests.support.losses import plain_pass
from tests.support.rollouts import by_question, completions
from tests.support.rounding import TOLERANCE

GENERATIONS = 4
MAX_LENGTH = 14


@pytest.fixture
def prompts(tiny) -> list[Prompt]:
    """Six prompts of several lengths."""
    _, tokenizer = tiny
    _, prompts, _ = encode_problems(load_problems("arithmetic", split="test", size=10), tokenizer, PromptFormat())
    chosen = prompts[:6]
    assert len({len(prompt.token_ids) for prompt in chosen}) > 2
    return chosen


@pytest.fixture
def sampler(tiny) -> TransformersSampler:
    return TransformersSampler(*tiny, max_num_seqs=1000)


@pytest.fixture
def exact(tiny) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """That model in float64: rounding, which other batches do differently, moves no draw to another token."""
    norms_in_their_own_type(tiny[0].double())
    return tiny


# --- what comes out ---


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("max_num_seqs", [1000, 3])
def test_logprobs_are_those_of_the_policy(tiny, prompts, temperature, max_num_seqs):
    model, tokenizer = tiny
    sampler = TransformersSampler(model, tokenizer, max_num_seqs=max_num_seqs)
    rollouts = sampler.sample(prompts, GENERATIONS, 0, max_completion_length=MAX_LENGTH, temperature=temperature)
    again, _ = plain_pass(temperature=temperature, max_tokens_per_microbatch=200).rate_rollouts(model, rollouts)
    torch.testing.assert_close(rollouts.logprobs, again, atol=TOLERANCE["float32"], rtol=0)
    assert (rollouts.logprobs[rollouts.mask] < 0).all()


def test_rollouts_are_consistent(tiny, sampler, prompts):
    _, tokenizer = tiny
    rollouts = sampler.sample(prompts, GENERATIONS, 0, max_completion_length=MAX_LENGTH)
    assert rollouts.prompts == prompts and rollouts.num_generations == GENERATIONS
    assert rollouts.completion_ids.shape == rollouts.logprobs.shape == (24, rollouts.lengths.max())
    assert set(rollouts.finish_reasons) == {"stop", "length"}  # both kinds are tested below
    rows = zip(rollouts.completion_ids, rollouts.lengths.tolist(), rollouts.finish_reasons, rollouts.texts, strict=True)
    for ids, length, reason, text in rows:
        real = ids[:length].tolist()
        assert 1 <= length <= MAX_LENGTH
        assert tokenizer.eos_token_id not in real[:-1]
        assert (reason == "stop") == (real[-1] == tokenizer.eos_token_id)
        assert reason == "stop" or length == MAX_LENGTH
        assert (ids[length:] == 0).all()
        assert text == tokenizer.decode(real, skip_special_tokens=True)
        assert "<eos>" not in text
    assert torch.equal(rollouts.truncated, torch.tensor([reason == "length" for reason in rollouts.finish_reasons]))
    assert torch.equal(rollouts.mask.sum(dim=1), rollouts.lengths)


def test_an_answer_that_ends_with_its_last_token_has_stopped(tiny, sampler, prompts):
    _, tokenizer = tiny
    rollouts = sampler.sample(prompts, 16, 0, max_completion_length=MAX_LENGTH)
    length = int(rollouts.lengths[[reason == "stop" for reason in rollouts.finish_reasons]].max())
    cut = sampler.sample(prompts, 16, 0, max_completion_length=length)
    last = cut.completion_ids[:, length - 1]
    stopped = torch.tensor([reason == "stop" for reason in cut.finish_reasons])
    assert ((last == tokenizer.eos_token_id) & stopped & (cut.lengths == length)).any()
    assert torch.equal(stopped & (cut.lengths == length), last == tokenizer.eos_token_id)


def test_confidence_is_the_geometric_mean_probability():
    logprobs = torch.tensor([[0.5, 0.125, 1.0], [0.3, 0.9, 0.9]]).log()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert geometric_mean_probability(logprobs, mask).tolist() == pytest.approx(
        [0.25, 0.3]
    )  # sqrt(1/16), and one token


def test_every_one_of_several_end_tokens_ends(tiny, prompts):
    model, tokenizer = tiny
    comma, bracket = tokenizer.convert_tokens_to_ids([",", "}"])
    model.generation_config.eos_token_id = [comma, bracket]
    sampler = TransformersSampler(model, tokenizer, max_num_seqs=64)
    ends = {comma, bracket, tokenizer.eos_token_id}
    assert set(sampler.end_tokens.tolist()) == ends
    rollouts = sampler.sample(prompts, 16, 0, max_completion_length=MAX_LENGTH)
    last = set()
    for question in range(len(prompts)):
        for ids in completions(rollouts, question):
            assert not ends & set(ids[:-1])
            last.add(ids[-1])
    assert {comma, bracket} <= last
    assert all(
        (reason == "stop") == (ids[length - 1].item() in ends)
        for ids, length, reason in zip(rollouts.completion_ids, rollouts.lengths, rollouts.finish_reasons, strict=True)
    )


# --- what decides it ---


def test_the_same_seed_gives_the_same(sampler, prompts):
    first = sampler.sample(prompts, GENERATIONS, 7, max_completion_length=MAX_LENGTH)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    second = sampler.sample(prompts, GENERATIONS, 7, max_completion_length=MAX_LENGTH)
    assert torch.equal(torch.get_rng_state(), state)  # no other generator is touched
    assert torch.equal(first.completion_ids, second.completion_ids)
    assert torch.equal(first.logprobs, second.logprobs)
    assert first.texts == second.texts


def test_another_seed_gives_another(sampler, prompts):
    first, second = (
        by_question(sampler.sample(prompts, GENERATIONS, seed, max_completion_length=MAX_LENGTH)) for seed in (7, 8)
    )
    assert all(first[name] != second[name] for name in first)


def test_samples_of_a_question_differ(sampler, prompts):
    rollouts = sampler.sample(prompts, 16, 0, max_completion_length=MAX_LENGTH)
    for question in range(len(prompts)):
        assert len(set(map(tuple, completions(rollouts, question)))) >= 15


def test_the_same_problem_under_another_id_gets_other_samples(sampler, prompts):
    twins = [prompts[0], Prompt("its twin", prompts[0].token_ids)]
    rollouts = sampler.sample(twins, GENERATIONS, 0, max_completion_length=MAX_LENGTH)
    assert not set(map(tuple, completions(rollouts, 0))) & set(map(tuple, completions(rollouts, 1)))


def test_a_question_does_not_depend_on_its_batch(exact, prompts):
    sampler = TransformersSampler(*exact, max_num_seqs=1000)
    together = by_question(sampler.sample(prompts, GENERATIONS, 3, max_completion_length=MAX_LENGTH))
    backwards = by_question(sampler.sample(prompts[::-1], GENERATIONS, 3, max_completion_length=MAX_LENGTH))
    assert backwards == together
    for prompt in prompts:  # alone no prompt is padded
        alone = by_question(sampler.sample([prompt], GENERATIONS, 3, max_completion_length=MAX_LENGTH))
        assert alone[prompt.problem_id] == together[prompt.problem_id]
    for max_num_seqs in (1, 3, 8, 9):
        smaller = TransformersSampler(*exact, max_num_seqs=max_num_seqs)
        assert by_question(smaller.sample(prompts, GENERATIONS, 3, max_completion_length=MAX_LENGTH)) == together


def test_left_padding_changes_no_logprob(exact, prompts):
    sampler = TransformersSampler(*exact, max_num_seqs=1000)
    together = sampler.sample(prompts, 1, 3, max_completion_length=MAX_LENGTH)
    for row, prompt in enumerate(prompts):
        alone = sampler.sample([prompt], 1, 3, max_completion_length=MAX_LENGTH)
        length = int(alone.lengths[0])
        torch.testing.assert_close(
            together.logprobs[row, :length], alone.logprobs[0], atol=TOLERANCE["float32"], rtol=0
        )


def test_left_padding_shifts_no_absolute_position(tiny, prompts):
    _, tokenizer = tiny
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,  # so that positions weigh something
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config).eval()
    rollouts = TransformersSampler(model, tokenizer, max_num_seqs=64).sample(prompts, 2, 0, max_completion_length=8)
    again, _ = plain_pass(max_tokens_per_microbatch=200).rate_rollouts(model, rollouts)
    torch.testing.assert_close(rollouts.logprobs, again, atol=TOLERANCE["float32"], rtol=0)


def test_more_samples_keep_the_first_ones(exact, prompts):
    sampler = TransformersSampler(*exact, max_num_seqs=1000)
    few, many = (by_question(sampler.sample(prompts, n, 3, max_completion_length=MAX_LENGTH)) for n in (2, 5))
    assert all(many[name][:2] == few[name] for name in few)


@pytest.mark.parametrize("max_num_seqs", [1, 3, 4, 9, 100])
def test_no_more_sequences_at_once_than_allowed(tiny, prompts, max_num_seqs):
    model, tokenizer = tiny
    rows = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    TransformersSampler(model, tokenizer, max_num_seqs=max_num_seqs).sample(
        prompts, GENERATIONS, 0, max_completion_length=MAX_LENGTH
    )
    assert max(rows) <= max_num_seqs


def test_finished_sequences_leave_the_batch(tiny, sampler, prompts):
    model, _ = tiny
    rows = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    rollouts = sampler.sample(prompts, 8, 0, max_completion_length=60)
    assert rows[:2] == [6, 48]  # each prompt is computed once
    alive = [int((rollouts.lengths > step).sum()) for step in range(1, len(rows))]
    assert all(now <= before for before, now in itertools.pairwise(rows[1:]))
    assert all(0.9 * computed <= needed <= computed for computed, needed in zip(rows[1:], alive, strict=True))
    assert rows[-1] < 48


def test_greedy_takes_the_most_likely_token(tiny, sampler, prompts):
    model, tokenizer = tiny
    rollouts = sampler.sample(prompts, 1, 0, max_completion_length=MAX_LENGTH, temperature=0)
    for question, prompt in enumerate(prompts):
        ids, logprobs = list(prompt.token_ids), []
        while len(logprobs) < MAX_LENGTH and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                table = model(torch.tensor([ids])).logits[0, -1].log_softmax(dim=0)  # no cache, no padding
            ids.append(int(table.argmax()))
            logprobs.append(table.max().item())
        length = len(logprobs)
        assert completions(rollouts, question) == [ids[len(prompt.token_ids) :]]
        assert rollouts.logprobs[question, :length].tolist() == pytest.approx(logprobs, abs=TOLERANCE["float32"])


def test_top_p_samples_from_the_nucleus_alone(tiny, sampler, prompts):
    model, _ = tiny
    rollouts = sampler.sample(prompts, 16, 0, max_completion_length=8, top_p=0.5)
    for row, length in enumerate(rollouts.lengths.tolist()):
        prompt = rollouts.prompts[row // 16].token_ids
        ids = torch.tensor([[*prompt, *rollouts.completion_ids[row, :length].tolist()]])
        with torch.no_grad():
            probabilities = model(ids).logits[0, len(prompt) - 1 : -1].softmax(dim=1)
        chosen = probabilities.gather(1, ids[0, len(prompt) :, None])
        above = (probabilities * (probabilities > chosen)).sum(dim=1)
        assert (above < 0.5 + TOLERANCE["float32"]).all()
        # They share the whole mass.
        assert (rollouts.logprobs[row, :length] >= chosen.squeeze(1).log() - TOLERANCE["float32"]).all()


# --- seeds and refusals ---


def test_seeds_depend_on_every_part():
    seeds = [derive_seed(1, "a"), derive_seed(2, "a"), derive_seed(1, "b"), derive_seed("a", 1), derive_seed(1)]
    assert len(set(seeds)) == len(seeds)
    assert derive_seed(1, "a") == derive_seed(1, "a")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_model_that_cannot_end_is_refused(tiny):
    model, tokenizer = tiny
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="must have a tokenizer with an end-of-sequence token"):
        TransformersSampler(model, tokenizer, max_num_seqs=4)


# --- models of other kinds ---

# All that an attention layer may do which leaves keys and scores to transformers' interface: shared heads, windows in
# all layers or in some, norms of queries, experts, positions that are added, and heads with a width of their own.
APART = ["llama", "mistral", "gemma3_text", "qwen3_moe", "gpt2", "phi3"]


@pytest.mark.parametrize("name", APART)
def test_prompts_and_answers_that_are_remembered_apart_change_nothing(name):
    model = make_random_model(name)
    attention = model.config._attn_implementation
    sampler = TransformersSampler(model, OnlyIds(), max_num_seqs=100)
    assert sampler.keeps_apart
    sampler.end_tokens = torch.arange(0, 97, 9)  # answers end at different times, so their rows leave the batch
    options = {"max_completion_length": 40, "temperature": 5.0}
    for prompts in (PROMPTS, PROMPTS[:1]):  # padded, and not
        apart = sampler.sample(prompts, 6, 0, **options)
        assert model.config._attn_implementation == attention
        sampler.keeps_apart = False
        together = sampler.sample(prompts, 6, 0, **options)
        sampler.keeps_apart = True
        assert len(set(apart.lengths.tolist())) > 3
        assert torch.equal(apart.completion_ids, together.completion_ids)
        torch.testing.assert_close(apart.logprobs, together.logprobs, atol=TOLERANCE["float32"], rtol=0)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "deepseek_v3", "stablelm", "bloom", "mpt", "lfm2"])
def test_a_model_whose_layers_do_more_with_keys_or_scores_is_decoded_with_its_own_cache(name):
    assert not TransformersSampler(make_random_model(name), OnlyIds(), max_num_seqs=8).keeps_apart


def test_prompts_pass_through_the_model_in_parts_of_like_length(tiny, prompts, monkeypatch):
    model, tokenizer = tiny
    sampler = TransformersSampler(model, tokenizer, max_num_seqs=100)
    whole = by_question(sampler.sample(prompts, 2, 0, max_completion_length=MAX_LENGTH))
    monkeypatch.setattr("lens.sampling.transformers.READ_AT_ONCE", 40)
    parts = list(sampler._parts(sorted((prompt.token_ids for prompt in prompts), key=len)))
    assert len(parts) > 1 and all(len(part) * len(part[-1]) <= 40 for part in parts)
    assert by_question(sampler.sample(prompts, 2, 0, max_completion_length=MAX_LENGTH)) == whole


@pytest.mark.parametrize("name", ["lfm2", "bamba", "mamba", "qwen3_next"])
def test_prompts_of_a_model_with_a_state_are_not_padded(name):
    model = make_random_model(name)
    prompts = [Prompt(f"{n}", tuple(range(n, n + length))) for n, length in enumerate((5, 9, 5, 12), start=3)]
    sampler = TransformersSampler(model, OnlyIds(), max_num_seqs=100)
    assert [sorted(batch) for batch in sampler._split(prompts, 3)] == [[0, 2], [1], [3]]
    rollouts = sampler.sample(prompts, 3, 0, max_completion_length=8, temperature=0.7)
    again, _ = plain_pass(temperature=0.7).rate_rollouts(model, rollouts)
    torch.testing.assert_close(rollouts.logprobs, again, atol=1e-4, rtol=0)
    for prompt in prompts:
        alone = sampler.sample([prompt], 3, 0, max_completion_length=8, temperature=0.7)
        assert by_question(alone)[prompt.problem_id] == by_question(rollouts)[prompt.problem_id]


def test_a_model_whose_state_lies_elsewhere_is_refused():
    with pytest.raises(ConfigError, match="sampler='transformers': must be vllm, as MiniMaxForCausalLM"):
        TransformersSampler(make_random_model("minimax"), OnlyIds(), max_num_seqs=8)


def test_an_engine_that_decodes_other_log_probabilities_is_refused():
    model = make_random_model("recurrent_gemma")  # its modules keep a state that the cache does not have
    sampler = TransformersSampler(model, OnlyIds(), max_num_seqs=8)
    with pytest.raises(ConfigError, match="sampler='transformers': must be vllm: token by token, RecurrentGemma"):
        probe_engine(sampler, model, PROMPTS, plain_pass(temperature=0.7))
