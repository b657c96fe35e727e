"""Engines of vLLM that start, refuse to, and leave nothing behind: one after the other, as they share a process."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lens.errors import ConfigError
from lens.models.loading import load_model
from lens.problems import load_problems
from lens.problems.prompts import Prompt, PromptFormat, encode_problems
from tests.support.command_line import Command, environment, metrics_of, run, steps_in, training, wait_until
from tests.support.vllm_engine import (
    GENERATIONS,
    MAX_LENGTH,
    VLLM,
    largest_difference,
    last_tokens,
    make_engine,
    weights,
)


@pytest.fixture(scope="module")
def policy(tiny_folder: Path) -> tuple[PreTrainedModel, Any]:
    return load_model(str(tiny_folder))


@pytest.fixture(scope="module")
def prompts(policy) -> list[Prompt]:
    problems = load_problems("arithmetic", split="test", size=50)
    return encode_problems(problems, policy[1], PromptFormat())[1]


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


def test_an_engine_in_bfloat16_takes_float32_weights_and_is_near(policy, prompts):
    engine = make_engine(*policy, dtype="bfloat16")
    try:
        engine.sync(weights(policy[0]))
        difference = largest_difference(policy[0], engine.sample(prompts, 1, 0, max_completion_length=MAX_LENGTH))
    finally:
        engine.close()
    assert 1e-3 < difference < 0.5


# --- what cannot work ---


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sleep": True}, "sampler.sleep=True: must be false on a CPU"),
        ({"kv_cache_space": None}, "sampler.kv_cache_space=None: must be a number of GiB"),
        ({"kv_cache_space": 4000}, "sampler.kv_cache_space=4000: "),
        ({"kv_cache_space": 1e-5}, "sampler.kv_cache_space=1e-05: "),
        ({"tensor_parallel_size": 2}, "sampler.tensor_parallel_size=2: must be a divisor of the 1 processes"),
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
    with pytest.raises(ConfigError, match=r"^model.name_or_path=.*: must be a model that vLLM supports"):
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
    said = (finished / "train.log").read_text()
    assert said.count("sampler=vllm: on a CPU it does not pay for a model of 0.1 million parameters") == 1


def stop(pupil: Path, logs: Path, outputs: Path, number: signal.Signals) -> Path:
    """The folder of a run that was told to end, and has left no process behind."""
    folder, marker = outputs / "run", f"LENS_TEST_RUN={outputs}"
    overrides = "trainer.max_steps=1000", "evaluation.every=0", f"hydra.run.dir={folder}"
    command = Command(*commands(pupil, outputs, *overrides), folder=logs, env=environment(LENS_TEST_RUN=str(outputs)))
    command.wait_until(lambda: steps_in(folder) >= 2)
    command.signal(number)
    result = command.wait()
    assert result.code == 130, result.stderr
    assert wait_until(lambda: left_over(marker) == [])
    return folder


def test_a_run_that_is_stopped_leaves_no_process_and_syncs_and_probes_when_it_goes_on(pupil, logs, tmp_path):
    folder = stop(pupil, logs, tmp_path, signal.SIGINT)
    reached = steps_in(folder)
    again = run(
        *commands(pupil, tmp_path, "evaluation.every=0", f"hydra.run.dir={folder}", max_steps=reached + 2), folder=logs
    )
    assert again.code == 0, again.stderr
    assert f"Resuming from step {reached}" in again.stdout
    steps = [line for line in metrics_of(folder) if "loss" in line]
    assert [line["train/global_step"] for line in steps] == list(range(1, reached + 3))
    assert "sampling/logp_difference_max" in steps[reached]


@pytest.mark.slow
def test_a_run_that_is_terminated_leaves_no_process(pupil, logs, tmp_path):
    stop(pupil, logs, tmp_path, signal.SIGTERM)


def test_a_run_is_evaluated_with_vllm(finished, logs, tmp_path):
    command = ["scripts/evaluate.py", f"checkpoint={finished}", f"outputs={tmp_path}", *VLLM]
    sizes = ["evaluation.sets.arithmetic.size=20", "evaluation.num_samples=4"]
    result = run(*command, *sizes, folder=logs)
    assert result.code == 0, result.stderr
    assert "levels_4-5" in result.stdout


def test_an_engine_with_other_weights_ends_the_run_before_it_trains_and_leaves_no_process(pupil, logs, tmp_path):
    env = environment(LENS_TEST_RUN=str(tmp_path))
    result = run(*commands(pupil, tmp_path, "sampler.max_logp_difference=1e-9"), folder=logs, env=env)
    assert result.code == 2
    assert "error: sampler.max_logp_difference=1e-09: must be at least" in result.stderr
    assert not list(tmp_path.rglob("checkpoints"))
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
    assert "max_completion_length=250: must be at most " in result.one_line()
    assert "the longest prompt, arithmetic/" in result.one_line()


@pytest.mark.slow
def test_a_sweep_of_processes_survives_a_failing_job_and_names_it(pupil, logs, tmp_path):
    sweep = ["-m", "hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    command = commands(pupil, tmp_path, *sweep, "objective=grpo,lens", max_steps=2)
    result = run(*command, "loss.beta=0,-1", folder=logs, real=True)
    assert result.code == 2, result.stderr
    failed = result.errors()
    assert len(failed) == 2 and all("loss.beta=-1: must be a number >= 0" in line for line in failed)
    assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 2
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout == b""
