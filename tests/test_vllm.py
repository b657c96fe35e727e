"""The real vLLM: what it samples, that it has the policy's weights, and that nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command, environment, metrics_of, run, training, wait_until
from test_sampler import by_question
from torch import Tensor
from transformers import PreTrainedModel

from lens.errors import ConfigError
from lens.experience import logp_difference
from lens.policy import load_model, recompute
from lens.problems import load_problems
from lens.prompts import Prompt, PromptFormat, encode_problems
from lens.sampling.rollouts import Rollouts, Sampler
from lens.sampling.syncing import SyncedSampler, probe
from lens.sampling.transformers import TransformersSampler
from lens.update import Loss

GENERATIONS, MAX_LENGTH = 4, 14
CHOICES = {
    "max_model_len": 100,
    "dtype": "float32",
    "max_num_seqs": 64,
    "kv_cache_space": 0.25,
    "gpu_memory_utilization": 0.4,
    "tensor_parallel_size": 1,
    "enforce_eager": True,
    "sleep": False,
    "parity_every": 2,
    "max_logp_difference": 1e-3,
}
VLLM = ["sampler=vllm", "sampler.kv_cache_space=0.25", "sampler.max_num_seqs=64"]


def make_engine(model: PreTrainedModel, tokenizer: Any, **changes: Any) -> Sampler:
    from lens.sampling.vllm import VLLMSampler

    return VLLMSampler(model, tokenizer, **(CHOICES | changes))


def weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    return model.named_parameters(remove_duplicate=False)


def ratings(model: PreTrainedModel, rollouts: Rollouts) -> Tensor:
    return recompute(model, rollouts, temperature=1.0, logits_chunk_size=256, max_tokens=2000)[0]


def largest_difference(model: PreTrainedModel, rollouts: Rollouts) -> float:
    found = logp_difference(ratings(model, rollouts), rollouts.logprobs, rollouts.mask)
    return found["sampling/logp_difference_max"]


def last_tokens(rollouts: Rollouts) -> list[int]:
    return [int(row[n - 1]) for row, n in zip(rollouts.completion_ids, rollouts.lengths, strict=True)]


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
    again, _ = recompute(policy[0], rollouts, temperature=temperature, logits_chunk_size=256, max_tokens=2000)
    torch.testing.assert_close(rollouts.logprobs, again, atol=1e-4, rtol=0)
    assert rollouts.completion_ids.shape == (len(prompts) * GENERATIONS, int(rollouts.lengths.max()))


def test_the_same_seed_gives_the_same_whatever_the_batch(engine, prompts):
    def sample(part: list[Prompt], seed: int) -> dict[str, list[list[int]]]:
        return by_question(engine.sample(part, GENERATIONS, seed, max_completion_length=MAX_LENGTH))

    whole = sample(prompts, 3)
    assert sample(prompts, 3) == whole
    assert sample(prompts[::-1], 3) == whole
    part = sample(prompts[7:9], 3)
    assert part == {name: whole[name] for name in part}
    assert sample(prompts, 4) != whole
    assert all(len({tuple(each) for each in samples}) > 1 for samples in whole.values())


def test_it_samples_from_the_same_distribution_as_the_embedded_engine(policy, engine, prompts):
    embedded = TransformersSampler(*policy, max_num_seqs=1000)
    counts = []
    for sampler in (engine, embedded):
        rollouts = sampler.sample(prompts[:1], 2000, 0, max_completion_length=1)
        counts.append(
            torch.bincount(rollouts.completion_ids[:, 0], minlength=policy[0].config.vocab_size).double() / 2000
        )
    assert 0.5 * (counts[0] - counts[1]).abs().sum() < 0.1  # total variation of two samples of the same: about 0.03


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


def test_a_model_with_several_end_tokens_ends_with_each(policy, prompts, monkeypatch):
    model, tokenizer = policy
    second = tokenizer.convert_tokens_to_ids(",")
    monkeypatch.setattr(model.generation_config, "eos_token_id", [tokenizer.eos_token_id, second])
    engine = make_engine(model, tokenizer)
    try:
        engine.sync(weights(model))
        rollouts = engine.sample(prompts, GENERATIONS, 0, max_completion_length=MAX_LENGTH)
    finally:
        engine.close()
    ended = zip(last_tokens(rollouts), rollouts.finish_reasons, strict=True)
    last = {token for token, why in ended if why == "stop"}
    assert last == {tokenizer.eos_token_id, second}


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


def test_an_engine_in_bfloat16_takes_float32_weights_and_is_near(policy, prompts):
    engine = make_engine(*policy, dtype="bfloat16")
    try:
        engine.sync(weights(policy[0]))
        difference = largest_difference(policy[0], engine.sample(prompts, 1, 0, max_completion_length=MAX_LENGTH))
    finally:
        engine.close()
    assert 1e-3 < difference < 0.5


LOSS = Loss(
    epsilon_low=0.2,
    epsilon_high=0.2,
    dual_clip=None,
    loss_agg_mode="seq-mean-token-mean",
    beta=0.0,
    temperature=1.0,
    max_completion_length=MAX_LENGTH,
    max_tokens_per_microbatch=2000,
    logits_chunk_size=256,
)


def test_a_probe_measures_and_refuses(policy, engine, prompts):
    found = probe(engine, policy[0], prompts, LOSS)
    assert 0 < found["sampling/logp_difference_mean"] <= found["sampling/logp_difference_max"] < 1e-3
    other = load_model(policy[0].name_or_path)[0]
    with torch.no_grad():
        other.lm_head.weight.mul_(1.1)
    with pytest.raises(ConfigError, match=r"max_logp_difference=0\.001: at least"):
        probe(engine, other, prompts, LOSS)


def test_an_engine_is_synced_when_the_policy_has_changed_and_probed_now_and_then(policy, engine, prompts, monkeypatch):
    seen = []
    monkeypatch.setattr(engine, "sync", lambda tensors: seen.append("sync"))
    monkeypatch.setattr("lens.sampling.syncing.probe", lambda *parts: seen.append("probe") or {"found": len(seen)})
    monkeypatch.setattr(engine, "parity_every", 3)
    synced = SyncedSampler(engine, policy[0], prompts, LOSS)
    for step in (0, 0, 1, 4, 4, 5):
        assert synced.at(step) is engine
    assert seen == ["sync", "probe", "sync", "sync", "probe", "sync"]
    assert synced.parity == {"found": 5}
    monkeypatch.setattr(engine, "parity_every", 0)
    rarely = SyncedSampler(engine, policy[0], prompts, LOSS)
    seen.clear()
    for step in range(5):
        rarely.at(step)
    assert seen == ["sync", "probe", *["sync"] * 4]


# --- whose memory ---


class Sleeper:
    """Stands in for an engine on a GPU, which no machine of ours has, and writes down what it is asked."""

    def __init__(self):
        self.asked = []

    def __getattr__(self, name: str) -> Any:
        def ask(*args: Any, **options: Any) -> list[Any]:
            self.asked.append((name, *options.get("tags", ())))
            return []

        return ask


def test_an_engine_that_sleeps_wakes_in_stages_around_a_sync(engine, monkeypatch):
    sleeper = Sleeper()
    monkeypatch.setattr(engine, "llm", sleeper)
    monkeypatch.setattr(engine, "sleep", True)
    with pytest.raises(ValueError, match="max"):  # of no completions
        engine.sample([], 1, 0, max_completion_length=1)
    assert sleeper.asked == [("generate",), ("sleep",)]
    engine.sync([])
    assert sleeper.asked[2:] == [("wake_up", "weights"), ("collective_rpc",), ("reset_prefix_cache",)]
    engine.sync([])
    assert ("wake_up", "weights") not in sleeper.asked[5:]
    with pytest.raises(ValueError, match="max"):
        engine.sample([], 1, 0, max_completion_length=1)
    assert sleeper.asked[7:] == [("wake_up", "kv_cache"), ("generate",), ("sleep",)]
    engine.asleep.clear()


# --- what cannot work ---


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sleep": True}, "sampler.sleep=True: false on a CPU"),
        ({"kv_cache_space": None}, "sampler.kv_cache_space=None: a number of GiB"),
        ({"kv_cache_space": 4000}, "sampler.kv_cache_space=4000: "),
        ({"kv_cache_space": 1e-5}, "sampler.kv_cache_space=1e-05: "),
        ({"tensor_parallel_size": 2}, "sampler.tensor_parallel_size=2: 1 in a single process"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="what a CPU cannot do")
def test_what_a_cpu_cannot_do_is_refused(policy, changes, line):
    with pytest.raises(ConfigError) as caught:
        make_engine(*policy, **changes)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_model_that_vllm_does_not_support_is_refused(tmp_path, policy):
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=200, n_embd=64, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    model = OpenAIGPTLMHeadModel.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^model.name_or_path=.*: a model that vLLM supports"):
        make_engine(model, policy[1])


# --- from the command line ---


def commands(pupil: Path, outputs: Path, *overrides: object, **keys: object) -> list[object]:
    """A short training run with vLLM."""
    return training(pupil, outputs, *VLLM, *overrides, **keys)


def left_over(marker: str) -> list[str]:
    """Command lines of processes that have the marker in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def finished(pupil, logs, tmp_path_factory) -> Path:
    """A finished run with vLLM."""
    outputs = tmp_path_factory.mktemp("finished")
    marker = f"LENS_TEST_RUN={outputs}"
    result = run(*commands(pupil, outputs), folder=logs, env=environment(LENS_TEST_RUN=str(outputs)))
    assert result.code == 0, result.stderr
    assert left_over(marker) == []
    (folder,) = (outputs / "runs").iterdir()
    return folder


def test_a_run_with_vllm_probes_its_engine_and_learns(finished):
    steps = [line for line in metrics_of(finished) if "loss" in line]
    assert len(steps) == 4
    assert all(line["sampling/logp_difference_max"] < 1e-3 for line in steps)
    assert any(line["grad_norm"] > 0 for line in steps)


def test_a_resumed_run_syncs_and_probes_before_it_goes_on(pupil, finished, logs, tmp_path):
    stopped = run(*commands(pupil, tmp_path, "hydra.run.dir=" + str(tmp_path / "run"), max_steps=2), folder=logs)
    assert stopped.code == 0, stopped.stderr
    again = run(*commands(pupil, tmp_path, "hydra.run.dir=" + str(tmp_path / "run")), folder=logs)
    assert again.code == 0, again.stderr
    steps = [line for line in metrics_of(tmp_path / "run") if "loss" in line]
    assert [line["train/global_step"] for line in steps] == [1, 2, 3, 4]
    assert "sampling/logp_difference_max" in steps[2]


def test_a_run_is_evaluated_with_vllm(finished, logs, tmp_path):
    command = ["scripts/evaluate.py", f"checkpoint={finished}", f"outputs={tmp_path}", *VLLM]
    sizes = ["evaluation.sets.arithmetic.size=20", "evaluation.num_samples=4"]
    result = run(*command, *sizes, folder=logs)
    assert result.code == 0, result.stderr
    assert "Levels 4-5" in result.stdout


def test_an_engine_with_other_weights_stops_the_run_before_it_trains(pupil, logs, tmp_path):
    result = run(*commands(pupil, tmp_path, "sampler.max_logp_difference=1e-9"), folder=logs)
    assert result.code == 2
    assert "error: sampler.max_logp_difference=1e-09: at least" in result.stderr
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.parametrize("how", ["exception", "SIGINT", "SIGTERM"])
def test_no_process_is_left_behind(pupil, logs, tmp_path, how):
    overrides = [] if how == "exception" else ["trainer.max_steps=1000", "evaluation.every=0"]
    if how == "exception":
        overrides = ["trainer.learning_rate=1e30", "trainer.max_grad_norm=1e30"]  # weights that are no numbers
    env = environment(LENS_TEST_RUN=str(tmp_path))
    command = Command(*commands(pupil, tmp_path, *overrides), folder=logs, env=env)
    if how != "exception":
        command.wait_until(
            lambda: any(len(file.read_text().splitlines()) > 2 for file in tmp_path.rglob("metrics.jsonl"))
        )
        command.signal(getattr(signal, how))
    result = command.wait()
    assert result.code == {"exception": 1}.get(how, 130), result.stderr
    assert wait_until(lambda: left_over(f"LENS_TEST_RUN={tmp_path}") == [])


def test_without_vllm_the_error_says_what_installs_it(pupil, logs, tmp_path):
    (tmp_path / "vllm.py").write_text("raise ImportError('no vllm here')\n")
    env = environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    result = run(*commands(pupil, tmp_path), folder=logs, env=env, real=True)
    assert result.code == 2
    assert result.stderr.splitlines()[-1].startswith("error: sampler=")
    assert "make setup VLLM=cpu" in result.stderr


def test_an_answer_beyond_the_models_positions_is_refused_by_the_longest_prompt(pupil, logs, tmp_path):
    result = run(*commands(pupil, tmp_path, max_completion_length=250, max_tokens_per_microbatch=400), folder=logs)
    assert result.code == 2
    assert "max_completion_length=250: at most " in result.one_line()
    assert "the longest prompt, arithmetic/" in result.one_line()


def test_a_sweep_of_processes_survives_a_failing_job_and_names_it(pupil, logs, tmp_path):
    command = commands(
        pupil, tmp_path, "-m", "hydra/launcher=submitit_local", "objective=grpo,lens", "trainer.beta=0,-1"
    )
    result = run(*command, "hydra.sweep.dir=" + str(tmp_path / "sweep"), max_steps=2, folder=logs, real=True)
    assert result.code == 2, result.stderr
    failed = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(failed) == 2 and all("trainer.beta=-1: a number >= 0" in line for line in failed)
    assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 2
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout == b""
