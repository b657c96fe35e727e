"""Three and four processes, two agents of torchrun and engines of several processes do what one process does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import Command, run, training
from tests.support.ports import free_ports
from tests.support.several_processes import assert_same_up_to_rounding
from tests.support.vllm_engine import VLLM

QUESTIONS, EVALUATED = 12, 25  # each of 2, 3 and 4 divides the one and not the other
MICROBATCH = 100  # tokens: an update has many micro-batches, of which some processes get one fewer


def a_run(pupil: Path, outputs: Path, *overrides: object) -> list[object]:
    keys = {
        "max_steps": 3,
        "num_prompts_per_rollout": QUESTIONS,
        "num_prompts_per_step": QUESTIONS,
        "max_tokens_per_microbatch": MICROBATCH,
    }
    return training(pupil, outputs, f"evaluation.sets.arithmetic.size={EVALUATED}", *overrides, **keys)


def end_of(command: list[object], folder: Path, logs: Path, processes: int = 1) -> Path:
    result = run(*command, f"hydra.run.dir={folder}", folder=logs, processes=processes)
    assert result.code == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def command(pupil, tmp_path_factory) -> list[object]:
    # In float32, sums in another order would move a draw to another token now and then.
    return a_run(pupil, tmp_path_factory.mktemp("outputs"), "model.dtype=float64")


@pytest.fixture(scope="module")
def alone(command, logs, tmp_path_factory) -> Path:
    """The folder of a run by one process."""
    return end_of(command, tmp_path_factory.mktemp("alone") / "run", logs)


@pytest.mark.parametrize("processes", [3, 4])
def test_a_run_by_several_is_that_by_one(command, alone, logs, tmp_path, processes):
    folder = end_of(command, tmp_path / "run", logs, processes)
    assert len(list((folder / "checkpoints" / "step_000003" / "optimizer").glob("*.safetensors"))) == processes
    assert_same_up_to_rounding(folder, alone)


def test_two_agents_of_two_processes_are_one_run(command, alone, logs, tmp_path):
    (port,) = free_ports(1)
    meeting = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    command = [*command, f"hydra.run.dir={tmp_path / 'run'}"]
    agents = [Command(*command, folder=logs, real=True, processes=2, agents=meeting) for _ in range(2)]
    for agent in agents:
        result = agent.wait()
        assert result.code == 0, result.stderr
    assert len(list((tmp_path / "run" / "checkpoints" / "step_000003" / "optimizer").glob("*.safetensors"))) == 4
    assert_same_up_to_rounding(tmp_path / "run", alone)


@pytest.fixture(scope="module")
def served(pupil, tmp_path_factory) -> list[object]:
    single = ["model.dtype=float32", "loss.beta=0", "sampler.parity_every=1"]  # vLLM has no float64
    return a_run(pupil, tmp_path_factory.mktemp("outputs"), *VLLM, *single)


@pytest.fixture(scope="module")
def served_alone(served, logs, tmp_path_factory) -> Path:
    return end_of(served, tmp_path_factory.mktemp("alone") / "run", logs)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_engines_of_two_processes_sample_what_one_process_does(served, served_alone, logs, tmp_path, processes):
    folder = end_of([*served, "sampler.tensor_parallel_size=2"], tmp_path / "run", logs, processes)
    assert_same_up_to_rounding(folder, served_alone)
