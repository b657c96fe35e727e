"""Three and four processes, two agents of torchrun, and engines of several processes do what one process does."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.support.command_line import Command, metrics_of, run, training
from tests.support.ports import free_ports
from tests.support.several_processes import METRICS, assert_same_tensors, assert_same_up_to_rounding
from tests.support.vllm_engine import VLLM

STEPS = 3
QUESTIONS, EVALUATED = 12, 25  # 2, 3 and 4 processes divide the questions of a step, and not those of an evaluation
MICROBATCH = 100  # tokens; an update has many micro-batches, and some processes get one fewer
MOVED, ACCURACY = 0.1, 0.1  # share of answers that rounding may change; what that may do to a mean of 100 answers


def short_run(pupil: Path, outputs: Path, *overrides: object) -> list[object]:
    keys = {
        "max_steps": STEPS,
        "num_prompts_per_rollout": QUESTIONS,
        "num_prompts_per_step": QUESTIONS,
        "max_tokens_per_microbatch": MICROBATCH,
    }
    return training(pupil, outputs, f"evaluation.sets.arithmetic.size={EVALUATED}", *overrides, **keys)


def finished(command: list[object], folder: Path, logs: Path, processes: int = 1) -> Path:
    """The folder of a run, which is given, after its end."""
    result = run(*command, f"hydra.run.dir={folder}", folder=logs, processes=processes)
    assert result.code == 0, result.stderr
    return folder


def shards_in(folder: Path) -> int:
    """How many processes have written the last checkpoint."""
    return len(list((folder / "checkpoints" / f"step_{STEPS:06d}" / "optimizer").glob("*.safetensors")))


# --- three, four, and two times two ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command(pupil, tmp_path_factory) -> list[object]:
    # In float32, sums in another order would move a draw to another token now and then.
    return short_run(pupil, tmp_path_factory.mktemp("outputs"), "model.dtype=float64")


@pytest.fixture(scope="module")
def alone(command, logs, tmp_path_factory) -> Path:
    """The folder of a run by one process."""
    return finished(command, tmp_path_factory.mktemp("alone") / "run", logs)


@pytest.mark.parametrize("processes", [3, 4])
def test_a_run_by_many_is_that_by_one(command, alone, logs, tmp_path, processes):
    folder = finished(command, tmp_path / "run", logs, processes)
    assert shards_in(folder) == processes
    assert_same_up_to_rounding(folder, alone)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_agents_with_two_processes_each_are_one_run(command, alone, logs, tmp_path):
    (port,) = free_ports(1)
    meeting = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    folder = tmp_path / "run"
    command = [*command, f"hydra.run.dir={folder}"]
    agents = [Command(*command, folder=logs, real=True, processes=2, agents=meeting) for _ in range(2)]
    results = [agent.wait() for agent in agents]
    assert [result.code for result in results] == [0, 0], results
    assert sum(result.stdout.count(f"Finished at step {STEPS}") for result in results) == 1  # one process speaks
    assert shards_in(folder) == 4
    assert_same_up_to_rounding(folder, alone)


# --- tensor parallelism ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_vllm(pupil, tmp_path_factory) -> list[object]:
    single = ["model.dtype=float32", "loss.beta=0"]  # vLLM has no float64
    return short_run(pupil, tmp_path_factory.mktemp("outputs"), *VLLM, *single, "sampler.parity_every=1")


@pytest.fixture(scope="module")
def alone_with_vllm(with_vllm, logs, tmp_path_factory) -> Path:
    """The folder of a run by one process that is an engine, too."""
    return finished(with_vllm, tmp_path_factory.mktemp("alone") / "run", logs)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [2, 4])
def test_engines_of_two_processes_each_make_the_run_of_one(with_vllm, alone_with_vllm, logs, tmp_path, processes):
    folder = finished([*with_vllm, "sampler.tensor_parallel_size=2"], tmp_path / "run", logs, processes)
    assert shards_in(folder) == processes
    steps = [line for line in metrics_of(folder) if "loss" in line]
    assert len(steps) == STEPS
    assert all(0 < line["sampling/logp_difference_max"] < 1e-3 for line in steps)
    assert_same_until_a_draw_moves(folder, alone_with_vllm)


def assert_same_until_a_draw_moves(folder: Path, alone: Path) -> None:
    """Answers and metrics are the same until rounding moves a draw to another token; accuracies stay near after that.

    Two processes add up halves of float32 sums that one adds up whole. Where this moves a draw, few answers may change.
    """
    lines, expected = metrics_of(folder), metrics_of(alone)
    moved = 0.0
    for line, other in zip(lines, expected, strict=True):
        of_step = f"step_{other['train/global_step']:06d}"
        table = f"rollouts/{of_step}.parquet" if "loss" in other else f"evaluations/{of_step}_completions.parquet"
        moved = moved or changed_answers(folder / table, alone / table)
        if not moved:
            assert line == pytest.approx(other, abs=METRICS, rel=METRICS)
        for name in other.keys() & {"eval/arithmetic/pass@1"}:
            assert line[name] == pytest.approx(other[name], abs=ACCURACY)
    print(f"{moved:.0%} of the answers changed where the first did")
    assert moved < MOVED
    if not moved:
        assert_same_tensors(folder, alone, "model.safetensors")


def changed_answers(ours: Path, theirs: Path) -> float:
    """The share of answers to the same questions that differ between two tables."""
    one, other = pd.read_parquet(ours), pd.read_parquet(theirs)
    question = "problem_id" if "problem_id" in one else "id"
    assert list(one[question]) == list(other[question])
    return (one["text"] != other["text"]).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "valid"),
    [(2, "must be a divisor of the 3 processes"), (3, "must divide the model: Total number of attention heads (2) ")],
    ids=["processes", "model"],
)
def test_an_engine_that_fits_neither_processes_nor_model_is_refused(with_vllm, logs, tmp_path, size, valid):
    command = [*with_vllm, f"sampler.tensor_parallel_size={size}", f"hydra.run.dir={tmp_path / 'run'}"]
    result = run(*command, folder=logs, processes=3)
    assert result.code == 2
    (line,) = result.errors()
    assert line.startswith(f"error: sampler.tensor_parallel_size={size}: {valid}")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
