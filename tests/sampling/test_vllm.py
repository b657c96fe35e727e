"""The real vLLM: what it samples, with what probability, and that it has the policy's weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from scipy.stats import chisquare
from torch import Tensor
from transformers import PreTrainedModel

from lens.errors import ConfigError
from lens.models.loading import load_model
from lens.models.lora import add_adapters
from lens.models.sharding import gather_named_weights
from lens.problems import load_problems
from lens.problems.prompts import Prompt, PromptFormat, encode_problems
from lens.sampling.rollouts import Rollouts, Sampler
from lens.sampling.transformers import TransformersSampler
from lens.seeding import random_states
from lens.training.weight_sync import WeightSync, probe_engine
from tests.support.command_line import is_equal
from tests.support.losses import plain_pass
from tests.support.rollouts import by_question
from tests.support.rounding import TOLERANCE
from tests.support.vllm_engine import (
    GENERATIONS,
    MAX_LENGTH,
    largest_difference,
    last_tokens,
    make_engine,
    ratings,
    weights,
)

PASS = plain_pass()


@pytest.fixture(scope="module")
def policy(tiny_folder: Path) -> tuple[PreTrainedModel, Any]:
    return load_model(str(tiny_folder))


@pytest.fixture(scope="module")
def prompts(policy) -> list[Prompt]:
    problems = load_problems("arithmetic", split="test", size=50)
    return encode_problems(problems, policy[1], PromptFormat())[1]


@pytest.fixture(scope="module")
def engine(policy) -> Iterator[Sampler]:
    engine = make_engine(*policy)
    engine.sync(weights(policy[0]))
    yield engine
    engine.close()


# --- what comes out ---


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_policy(policy, engine, prompts, temperature):
    rollouts = engine.sample(prompts, GENERATIONS, 0, max_completion_length=MAX_LENGTH, temperature=temperature)
    again, _ = plain_pass(temperature=temperature).rate_rollouts(policy[0], rollouts)
    torch.testing.assert_close(rollouts.logprobs, again, atol=TOLERANCE["float32"], rtol=0)
    assert rollouts.completion_ids.shape == (len(prompts) * GENERATIONS, int(rollouts.lengths.max()))


def test_the_same_seed_gives_the_same_whatever_the_batch(engine, prompts):
    def sample(part: list[Prompt], seed: int) -> dict[str, list[list[int]]]:
        return by_question(engine.sample(part, GENERATIONS, seed, max_completion_length=MAX_LENGTH))

    def share_alike(found: dict[str, list[list[int]]]) -> float:
        """How many of the answers are the same as in the whole batch."""
        return mean(own == other for name in found for own, other in zip(found[name], whole[name], strict=True))

    whole = sample(prompts, 3)
    assert sample(prompts, 3) == whole
    # Another batch rounds otherwise, which may move a rare draw to another token; a seed by place would move all.
    assert share_alike(sample(prompts[::-1], 3)) > 0.95
    assert share_alike(sample(prompts[7:9], 3)) > 0.5
    assert share_alike(sample(prompts, 4)) < 0.5
    assert all(len({tuple(each) for each in samples}) > 1 for samples in whole.values())


def test_it_samples_from_the_policys_distribution(policy, engine, prompts):
    count = 5000
    rollouts = engine.sample(prompts[:1], count, 0, max_completion_length=1)
    drawn = torch.bincount(rollouts.completion_ids[:, 0], minlength=policy[0].config.vocab_size).double()
    with torch.no_grad():
        logits = policy[0](torch.tensor([prompts[0].token_ids])).logits[0, -1]
    expected = logits.double().softmax(dim=0) * count
    frequent = expected >= 5
    pooled = [torch.cat([x[frequent], x[~frequent].sum()[None]]).numpy() for x in (drawn, expected)]
    assert chisquare(*pooled).pvalue > 1e-9  # the model, and so the draws, differ from processor to processor


def test_greedy_and_nucleus_sampling(policy, engine, prompts):
    greedy = engine.sample(prompts[:4], 1, 0, max_completion_length=MAX_LENGTH, temperature=0)
    expected = TransformersSampler(*policy, max_num_seqs=8).sample(
        prompts[:4], 1, 9, max_completion_length=MAX_LENGTH, temperature=0
    )
    assert by_question(greedy) == by_question(expected)
    nucleus = engine.sample(prompts[:4], 8, 0, max_completion_length=MAX_LENGTH, top_p=0.1)
    assert (nucleus.logprobs >= ratings(policy[0], nucleus) - 1e-4).all()  # of what is left, more likely than before


def test_truncated_is_what_the_engine_says_and_never_the_last_token(policy, engine, prompts):
    end = policy[1].eos_token_id
    rollouts = engine.sample(prompts, GENERATIONS, 0, max_completion_length=MAX_LENGTH)
    ends = [token == end for token in last_tokens(rollouts)]
    assert rollouts.finish_reasons == ["stop" if ended else "length" for ended in ends]
    assert 0 < sum(ends) < len(ends)
    assert all(int(n) == MAX_LENGTH for n, ended in zip(rollouts.lengths, ends, strict=True) if not ended)
    assert not any("<eos>" in text for text in rollouts.texts)


def test_seeded_prompts_beyond_the_engines_token_budget_are_computed_whole(engine):
    prompts = [Prompt(f"long {number}", tuple(range(3, 83))) for number in range(150)]  # 12,000 tokens
    rollouts = engine.sample(prompts, 1, 0, max_completion_length=2)
    assert len(rollouts.lengths) == 150


# --- whose weights ---


def test_after_a_sync_the_engine_has_the_new_weights_and_before_it_the_old(policy, engine, prompts):
    model = load_model(policy[0].name_or_path)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    before = engine.sample(prompts, GENERATIONS, 0, max_completion_length=MAX_LENGTH)
    assert largest_difference(model, before) > 1e-2
    try:
        engine.sync(weights(model))
        after = engine.sample(prompts, GENERATIONS, 0, max_completion_length=MAX_LENGTH)
        assert int(after.lengths.sum()) >= 512
        assert largest_difference(model, after) < 1e-3
    finally:
        engine.sync(weights(policy[0]))


def test_after_a_sync_the_engine_has_the_sum_of_weights_and_adapters(policy, engine, prompts):
    model = load_model(policy[0].name_or_path)[0]
    add_adapters(model, OmegaConf.create({"r": 4, "alpha": 8, "target_modules": "all-linear"}), seed=0)
    with torch.no_grad():
        for parameter in filter(lambda each: each.requires_grad, model.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    try:
        engine.sync(gather_named_weights(model))
        after = engine.sample(prompts, GENERATIONS, 0, max_completion_length=MAX_LENGTH)
        assert largest_difference(model, after) < 1e-3
        assert largest_difference(policy[0], after) > 1e-2
    finally:
        engine.sync(weights(policy[0]))


def test_a_probe_measures_and_refuses(policy, engine, prompts):
    found = probe_engine(engine, policy[0], prompts, PASS)
    assert 0 < found["sampling/logp_difference_mean"] <= found["sampling/logp_difference_max"] < 1e-3
    other = load_model(policy[0].name_or_path)[0]
    with torch.no_grad():
        other.lm_head.weight.mul_(1.1)
    with pytest.raises(ConfigError, match=r"max_logp_difference=0\.001: must be at least"):
        probe_engine(engine, other, prompts, PASS)


def test_a_soft_cap_that_the_engine_lacks_is_found_by_the_mean(policy, engine, prompts):
    capped = load_model(policy[0].name_or_path)[0]
    capped.config.final_logit_softcapping = 4.0  # what the trainer's head reads
    lenient = Recorder(engine, parity_every=0)  # the limits for bfloat16 on a GPU
    lenient.max_logp_difference, lenient.max_mean_logp_difference = 1.0, 0.05
    assert probe_engine(lenient, policy[0], prompts, PASS)["sampling/logp_difference_mean"] < 1e-4
    with pytest.raises(ConfigError, match=r"max_mean_logp_difference=0\.05: must be at least 0\.\d+, the mean"):
        probe_engine(lenient, capped, prompts, PASS)


class Recorder:
    """An engine that writes down what it is asked."""

    def __init__(self, engine: Sampler, parity_every: int):
        self.engine, self.parity_every, self.calls = engine, parity_every, []
        self.max_logp_difference = engine.max_logp_difference
        self.max_mean_logp_difference = engine.max_mean_logp_difference

    def sync(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.calls.append("sync")
        self.engine.sync(named_tensors)

    def sample(self, *args: Any, **options: Any) -> Rollouts:
        self.calls.append("sample")
        return self.engine.sample(*args, **options)


def test_an_engine_is_synced_when_the_policy_has_changed_and_probed_now_and_then(policy, engine, prompts):
    model = load_model(policy[0].name_or_path)[0]
    often, parities = Recorder(engine, parity_every=3), []
    weight_sync = WeightSync(often, model, prompts, PASS)
    try:
        for step in (0, 0, 1, 4, 4, 5):
            with torch.no_grad():
                model.lm_head.weight.copy_((1 + step / 10) * policy[0].lm_head.weight)
            assert weight_sync.sampler_at(step) is often
            parities.append(weight_sync.parity)
    finally:
        engine.sync(weights(policy[0]))
    assert often.calls == ["sync", "sample", "sync", "sync", "sample", "sync"]
    first, second = parities[0], parities[3]
    assert parities == [first] * 3 + [second] * 3
    for found in (first, second):
        assert 0 < found["sampling/logp_difference_mean"] <= found["sampling/logp_difference_max"] < 1e-3
    assert first != second
    seldom = Recorder(engine, parity_every=0)
    weight_sync = WeightSync(seldom, policy[0], prompts, PASS)
    for step in range(5):
        weight_sync.sampler_at(step)
    assert seldom.calls == ["sync", "sample", *["sync"] * 4]


def test_the_engine_of_a_resumed_run_is_synced_and_probed_and_the_metrics_stay(policy, engine, prompts):
    whole, parts = (WeightSync(Recorder(engine, parity_every=3), policy[0], prompts, PASS) for _ in range(2))
    for step in (0, 1):
        whole.sampler_at(step)
    parts.restore(whole.state())
    known = parts.parity
    parts.sampler_at(1)
    assert parts.sampler.calls == ["sync", "sample"]
    assert parts.parity == known
    for weight_sync in (whole, parts):
        weight_sync.sampler_at(2)
    assert parts.sampler.calls == ["sync", "sample", "sync", "sample"]  # the run's third sync
    assert parts.state() == whole.state()


def test_sampling_leaves_the_random_numbers_of_the_run_alone(engine, prompts):
    before = random_states()
    engine.sample(prompts, GENERATIONS, 0, max_completion_length=MAX_LENGTH)
    assert is_equal(random_states(), before)


# --- whose memory ---


class Sleeper:
    """Stands in for an engine on a GPU, which no machine of ours has, and writes down what it is asked."""

    def __init__(self):
        self.asked = []

    def __getattr__(self, name: str) -> Any:
        def ask(*args: Any, **options: Any) -> list[Any]:
            self.asked.append((name, *options.get("tags", ())))
            token = SimpleNamespace(logprob=-1.0)
            completion = SimpleNamespace(token_ids=[5], logprobs=[{5: token}], finish_reason="stop")
            return [SimpleNamespace(outputs=[completion])]

        return ask


def test_an_engine_that_sleeps_wakes_in_stages_around_a_sync(engine, prompts, monkeypatch):
    sleeper = Sleeper()
    monkeypatch.setattr(engine, "llm", sleeper)
    monkeypatch.setattr(engine, "sleep", True)
    engine.sample(prompts[:1], 1, 0, max_completion_length=1)
    assert sleeper.asked == [("generate",), ("sleep",)]
    engine.sync([])
    assert sleeper.asked[2:] == [("wake_up", "weights"), ("collective_rpc",), ("reset_prefix_cache",)]
    engine.sync([])
    assert ("wake_up", "weights") not in sleeper.asked[5:]
    engine.sample(prompts[:1], 1, 0, max_completion_length=1)
    assert sleeper.asked[7:] == [("wake_up", "kv_cache"), ("generate",), ("sleep",)]
    engine.asleep.clear()
