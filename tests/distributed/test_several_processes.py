"""Two processes do what one does, with gloo and FSDP2 for real, and torchrun where its signals matter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from lens.models.lora import WEIGHTS_FILE
from lens.problems.prompts import Prompt
from lens.runs.checkpoints import ADAPTER_FOLDER
from lens.sampling.parallel_sampler import merge_rollouts
from lens.sampling.rollouts import Rollouts
from tests.support.command_line import (
    ROOT,
    Command,
    assert_same_end,
    environment,
    kept_weights,
    metrics_of,
    run,
    steps_in,
    training,
)
from tests.support.gradients import error
from tests.support.rounding import TOLERANCE
from tests.support.several_processes import (
    assert_same_tensors,
    assert_same_up_to_rounding,
    found_by,
    make_case,
    stored_experience,
)
from tests.support.vllm_engine import VLLM

STEPS = 6
PATHS = environment(PYTHONPATH=str(ROOT))


# --- gradients on the same rollouts ----------------------------------------------------------------------------------


CASES = {
    f"{name}, {dtype}": make_case(dtype, **choices)
    for dtype in TOLERANCE
    for name, choices in {
        "one micro-batch": {},
        "several": {"max_tokens_per_microbatch": 80},
        "with a reference": {"beta": 0.1, "max_tokens_per_microbatch": 80},
        "with an entropy bonus": {"entropy_coef": 0.5},
        "with layers computed again": {"gradient_checkpointing": True},
    }.items()
} | {
    "in mixed precision": make_case("float32", autocast="bfloat16"),
    "in bfloat16": make_case("bfloat16", max_tokens_per_microbatch=80),
}
COMPILED = {f"with compiled layers, {dtype}": make_case(dtype, torch_compile=True) for dtype in TOLERANCE}
IN_BFLOAT16 = 0.01  # other micro-batches round otherwise


@pytest.fixture(scope="module")
def gradients(experience, tiny_folder, logs, tmp_path_factory) -> list[dict]:
    """What one process finds, and what two find together."""
    return found_by(experience, tiny_folder, CASES, logs, tmp_path_factory.mktemp("gradients"))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_process(gradients, case):
    assert_same_gradients(*gradients, CASES, case)


@pytest.mark.slow
def test_gradients_of_compiled_layers_are_those_of_one_process(experience, tiny_folder, logs, tmp_path):
    found = found_by(experience, tiny_folder, COMPILED, logs, tmp_path)
    for case in COMPILED:
        assert_same_gradients(*found, COMPILED, case)


def test_gradients_of_two_replicas_of_two_shards_are_those_of_one_process(experience, tiny_folder, logs, tmp_path):
    cases = {name: CASES[name] for name in ("several, float32", "several, float64", "in mixed precision")}
    one, four = found_by(experience, tiny_folder, cases, logs, tmp_path, several=4, degree=2)
    for case in cases:
        assert_same_gradients(one, four, cases, case)
        assert four[case]["held"] == pytest.approx(one[case]["held"] / 2, rel=0.01)
        assert all(torch.equal(four[case]["weights"][name], tensor) for name, tensor in one[case]["weights"].items())


def assert_same_gradients(by_one: dict, by_two: dict, cases: dict, case: str) -> None:
    """Gradient, metrics, log-probabilities and entropies agree as far as the data type lets them."""
    one, two = by_one[case], by_two[case]
    dtype, _, forward_pass = cases[case]
    tolerance = IN_BFLOAT16 if "bfloat16" in (dtype, forward_pass["autocast"]) else TOLERANCE[dtype]
    difference = error(two["gradient"], one["gradient"])
    print(f"{case}: the gradient differs by {difference:.1e} of its norm")
    assert difference < tolerance
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=10 * tolerance, abs=tolerance), name
    for name in ("logprobs", "entropies"):
        torch.testing.assert_close(two[name], one[name], atol=max(tolerance, 1e-6), rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_weights_travel_as_they_are_computed_with_and_gradients_in_float32_or_wider(gradients, case):
    _, two = gradients
    gathered = [dtype for name, dtype in two[case]["exchanges"] if "gather" in name]
    reduced = [dtype for name, dtype in two[case]["exchanges"] if "reduce" in name]
    dtype, _, forward_pass = CASES[case]
    # The vectors of norms, the embeddings and the head are not rounded to bfloat16.
    assert gathered == (["bfloat16", "float32"] if forward_pass["autocast"] else [dtype])
    assert reduced == ["float64" if dtype == "float64" else "float32"]
    assert len(two[case]["exchanges"]) == len(gathered) + len(reduced)  # and no Python objects


def test_each_process_holds_half_of_the_weights_and_hands_out_whole_ones(gradients):
    one, two = (found["several, float32"] for found in gradients)
    assert two["held"] == pytest.approx(one["held"] / 2, rel=0.01)
    assert one["weights"].keys() == two["weights"].keys()
    for name, tensor in one["weights"].items():
        assert torch.equal(two["weights"][name], tensor)


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command(pupil, tmp_path_factory) -> list[object]:
    keys = {"max_steps": STEPS, "num_prompts_per_rollout": 8, "checkpoint_every": 2, "beta": 0.01}
    # In float32, sums in another order would move a draw to another token now and then.
    exact = ["evaluation.every=3", "model.dtype=float64"]
    return training(pupil, tmp_path_factory.mktemp("outputs"), *exact, **keys)


@pytest.fixture(scope="module")
def alone(command, logs, tmp_path_factory) -> Path:
    """The folder of a run by one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    result = run(*command, f"hydra.run.dir={folder}", folder=logs)
    assert result.code == 0, result.stderr
    return folder


def test_two_processes_are_killed_and_one_goes_on(command, alone, logs, tmp_path):
    folder = tmp_path / "run"
    running = Command(*command, f"hydra.run.dir={folder}", folder=logs, processes=2)
    running.wait_until(lambda: (folder / "checkpoints" / "step_000002").exists())
    running.signal(signal.SIGKILL)
    running.wait()
    assert steps_in(folder) < STEPS
    assert not (folder / "summary.json").exists()

    rest = run(*command, "resume=must", f"hydra.run.dir={folder}", folder=logs)
    assert rest.code == 0, rest.stderr
    assert "Resuming from step" in rest.stdout
    assert_same_up_to_rounding(folder, alone)


def terminated(running: Command) -> str:
    """What two processes say of where they stand when torchrun is told to end, and has handed it on."""
    asked = time.monotonic()
    os.kill(running.process.pid, signal.SIGTERM)
    result = running.wait()
    assert time.monotonic() - asked < 20  # torchrun kills after 30
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("stopped: ")]
    return line


def test_two_processes_that_sample_are_stopped_at_once(command, alone, logs, tmp_path):
    file, folder = tmp_path / "wait", tmp_path / "run"
    waiting = [
        "sampler._target_=tests.support.faults.WaitingSampler",
        f"+sampler.while_exists={file}",
        f"hydra.run.dir={folder}",
    ]
    running = Command(*command, *waiting, folder=logs, real=True, processes=2, env=PATHS)
    running.wait_until(lambda: steps_in(folder) >= 3)
    file.touch()
    running.wait_until(file.with_suffix(".reached").exists)  # no step ends from now on
    line = terminated(running)
    assert file.exists()
    assert f"at step {steps_in(folder)} of {STEPS}" in line
    assert (folder / "checkpoints" / f"step_{steps_in(folder):06d}").exists()

    file.unlink()
    stopped_at = steps_in(folder)
    rest = run(*command, *waiting, "resume=must", folder=logs)
    assert rest.code == 0, rest.stderr
    assert f"Resuming from step {stopped_at}" in rest.stdout
    assert_same_up_to_rounding(folder, alone)


@pytest.mark.parametrize(("process", "fault"), [(0, "optimizer"), (1, "optimizer"), (0, "model"), (0, "folder")])
def test_a_save_that_fails_in_one_process_fails_in_all(tiny_folder, logs, tmp_path, process, fault):
    result = run("tests/support/failing_save.py", tiny_folder, tmp_path, process, fault, folder=logs, processes=2)
    assert result.code == 0, result.stderr
    ended = [(tmp_path / f"ended_{rank}.txt").read_text() for rank in (0, 1)]
    target = tmp_path / "checkpoints" / "step_000002"
    for rank, line in enumerate(ended):
        assert line.startswith(f"the checkpoint {target} could not be written (")
        assert line.endswith("); the last complete one is step_000001")
        assert "\n" not in line
        assert ("File exists" if fault == "folder" else "File too large") in line
        if rank != process:
            assert f"(process {process}: " in line
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step_000001", "step_000003"]


@pytest.mark.parametrize("process", [0, 1])
def test_a_run_in_which_one_process_cannot_save_ends_with_a_line_and_goes_on(command, alone, logs, tmp_path, process):
    folder, limits = tmp_path / "run", tmp_path / "limits"
    limited = ["sampler._target_=tests.support.faults.LimitedSampler", f"+sampler.limits={limits}"]
    command = [*command, *limited, f"hydra.run.dir={folder}"]
    limits.write_text(f"{process} 100000")
    result = run(*command, folder=logs, processes=2)
    assert result.code == 1, result.stderr
    line = result.one_line()
    assert line.startswith(f"failed: the checkpoint {folder / 'checkpoints'}/step_")
    assert f"could not be written (process {process}: " in line
    assert "; to resume: python " in line
    assert "Traceback" not in result.stdout + result.stderr
    assert not list((folder / "checkpoints").glob("*unfinished"))

    limits.unlink()
    rest = run(*command, folder=logs, processes=2)
    assert rest.code == 0, rest.stderr
    assert_same_up_to_rounding(folder, alone)


def test_two_processes_that_update_are_stopped_between_micro_batches(command, logs, tmp_path):
    folder = tmp_path / "run"
    long = [
        "trainer.rollouts.num_generations=64",
        "trainer.memory.max_tokens_per_microbatch=90",
    ]  # some hundred micro-batches
    running = Command(*command, *long, f"hydra.run.dir={folder}", folder=logs, real=True, processes=2)
    running.wait_until(lambda: any(folder.glob("rollouts/*.parquet")))  # the update is next
    assert f"at step 0 of {STEPS}" in terminated(running)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000000"]


def test_one_process_stops_and_two_go_on(command, alone, logs, tmp_path):
    folder = tmp_path / "run"
    running = Command(*command, f"hydra.run.dir={folder}", folder=logs)
    running.wait_until(lambda: (folder / "checkpoints" / "step_000002").exists())
    running.signal(signal.SIGKILL)
    running.wait()
    result = run(*command, "resume=must", f"hydra.run.dir={folder}", folder=logs, processes=2)
    assert result.code == 0, result.stderr
    assert result.stdout.count("Resuming from step") == 1  # one process speaks
    assert_same_up_to_rounding(folder, alone)
    moments = [path.name for path in (folder / "checkpoints" / f"step_{STEPS:06d}" / "optimizer").iterdir()]
    assert len(moments) == 2


@pytest.fixture(scope="module")
def adapting(command, logs, tmp_path_factory) -> tuple[list[object], Path]:
    """(command, run folder) of a run by one process that trains adapters."""
    command = [*command, "model/lora=default", "model.lora.r=4", "optimizer.learning_rate=1e-3"]
    folder = tmp_path_factory.mktemp("adapting") / "run"
    result = run(*command, f"hydra.run.dir={folder}", folder=logs)
    assert result.code == 0, result.stderr
    return command, folder


@pytest.mark.parametrize("processes", [(2, 1), (1, 2)])
def test_adapters_that_some_processes_have_trained_are_trained_on_by_others(adapting, logs, tmp_path, processes):
    command, alone = adapting
    folder = tmp_path / "run"
    for number, steps in zip(processes, (3, STEPS), strict=True):  # 3 steps: in the middle of a round
        keys = f"trainer.max_steps={steps}", f"hydra.run.dir={folder}"
        result = run(*command, *keys, folder=logs, processes=number)
        assert result.code == 0, result.stderr
        moments = list((folder / "checkpoints" / f"step_{steps:06d}" / "optimizer").glob("*.safetensors"))
        assert len(moments) == number
    assert "Resuming from step 3" in result.stdout
    assert_same_up_to_rounding(folder, alone)
    assert_same_tensors(folder, alone, f"{ADAPTER_FOLDER}/{WEIGHTS_FILE}")


def test_two_processes_in_bfloat16_resume_bit_for_bit_and_one_goes_on(command, logs, tmp_path):
    command = [*command, "model.dtype=bfloat16", "optimizer.learning_rate=1e-6"]
    whole, parts = ([*command, f"hydra.run.dir={tmp_path / name}"] for name in ("whole", "parts"))
    for arguments, steps in ((whole, 4), (parts, 3), (parts, 4)):
        result = run(*arguments, f"trainer.max_steps={steps}", folder=logs, processes=2)
        assert result.code == 0, result.stderr
    assert "Resuming from step 3" in result.stdout
    assert_same_end(tmp_path / "parts", tmp_path / "whole")

    before = kept_weights(tmp_path / "parts", 4)
    result = run(*parts, "trainer.max_steps=5", folder=logs)
    assert result.code == 0, result.stderr
    after = kept_weights(tmp_path / "parts", 5)
    # The first updates of AdamW are at most the learning rate, but for a few percent. Masters that began anew as the
    # rounded weights would jump back by up to all four of them.
    rounding = max((master - master.bfloat16()).abs().max().item() for master in before.values())
    assert rounding > 3e-6
    assert max((after[name] - master).abs().max().item() for name, master in before.items()) < 1.5e-6


def test_an_evaluation_by_two_is_that_by_one(alone, logs, tmp_path):
    command = ["scripts/evaluate.py", f"checkpoint={alone}", "evaluation.sets.arithmetic.size=15"]
    command += ["evaluation.num_samples=3"]
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        result = run(*command, f"hydra.run.dir={folder}", folder=logs, processes=processes)
        assert result.code == 0, result.stderr
        assert result.stdout.count("rows and answers:") == 1
    for name in ("evaluation", "completions"):
        one, two = (pd.read_parquet(tmp_path / str(processes) / f"{name}.parquet") for processes in (1, 2))
        pd.testing.assert_frame_equal(one, two, atol=1e-5)
    one, two = ((tmp_path / str(processes) / "failing_golds.json").read_text() for processes in (1, 2))
    assert one == two


@pytest.mark.slow
def test_two_processes_with_an_engine_each_are_killed_and_one_goes_on(command, logs, tmp_path):
    folder = tmp_path / "run"
    single = ["model.dtype=float32", "loss.beta=0"]  # vLLM has no float64
    command = [*command, *VLLM, *single, "sampler.parity_every=1", f"hydra.run.dir={folder}"]
    running = Command(*command, folder=logs, real=True, processes=2)
    running.wait_until(lambda: (folder / "checkpoints" / "step_000002").exists())
    running.signal(signal.SIGKILL)  # torchrun alone, whose processes end with it
    running.wait()
    assert steps_in(folder) < STEPS
    rest = run(*command, "resume=must", folder=logs)
    assert rest.code == 0, rest.stderr
    lines = [line for line in metrics_of(folder) if "reward" in line]
    assert [line["train/global_step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(0 < line["sampling/logp_difference_max"] < 1e-3 for line in lines)
    rows = pd.read_parquet(folder / "rollouts" / "step_000001.parquet")
    assert (len(rows), rows["problem_id"].nunique()) == (8 * 4, 8)

    rows = pd.read_parquet(sorted((folder / "rollouts").iterdir())[-1])
    checkpoint = folder / "checkpoints" / f"step_{STEPS:06d}"
    cases = {dtype: make_case(dtype, temperature=1.0) for dtype in TOLERANCE}
    one, two = found_by(stored_experience(rows), checkpoint, cases, logs, tmp_path)
    for dtype, tolerance in TOLERANCE.items():
        assert one[dtype]["gradient"].norm() > 0
        assert error(two[dtype]["gradient"], one[dtype]["gradient"]) < tolerance


def test_a_number_of_processes_that_does_not_divide_the_questions_is_refused(command, logs, tmp_path):
    keys = ["trainer.num_prompts_per_step=1", f"hydra.run.dir={tmp_path / 'run'}"]
    result = run(*command, *keys, folder=logs, processes=2)
    assert result.code == 2
    valid = "must be a multiple of 2, the number of processes"
    assert result.errors() == [f"error: trainer.num_prompts_per_step=1: {valid}"]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_torchrun_may_end_with_our_line_and_code(command, tmp_path):
    script, *keys = map(str, [*command, "trainer.num_prompts_per_step=1", f"hydra.run.dir={tmp_path / 'run'}"])
    torchrun = [sys.executable, "-m", "lens.distributed.torchrun", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run([*torchrun, script, *keys], env=PATHS, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    valid = "must be a multiple of 2, the number of processes"
    assert result.stderr == f"error: trainer.num_prompts_per_step=1: {valid}\n"


def test_shards_that_do_not_divide_the_processes_are_refused(command, logs, tmp_path):
    keys = ["trainer.memory.data_parallel_shard_degree=3", f"hydra.run.dir={tmp_path / 'run'}"]
    result = run(*command, *keys, folder=logs, processes=2)
    assert result.code == 2
    valid = "must be null, or a divisor of 2, the number of processes"
    assert result.errors() == [f"error: trainer.memory.data_parallel_shard_degree=3: {valid}"]


# --- sweeps ----------------------------------------------------------------------------------------------------------


def sweeping(command: list[object], outputs: Path, *overrides: object) -> list[object]:
    """The command of a sweep over two objectives; a later override of a key holds."""
    script, *rest = command
    return [script, "-m", *rest, f"outputs={outputs}", "objective=grpo,lens", *overrides]


def assert_trained_by_two(job: Path) -> None:
    assert (job / "summary.json").exists()
    assert len(list((job / "checkpoints").glob("step_*/optimizer/*.safetensors"))) == 2
    assert (job / "train.log").read_text().count("Finished at step 2") == 1


def test_each_job_of_a_sweep_may_have_several_processes_and_one_that_fails_is_named(command, logs, tmp_path):
    overrides = "trainer.max_steps=2", "trainer.num_prompts_per_step=1,4", "hydra.launcher.processes_per_job=2"
    result = run(*sweeping(command, tmp_path, *overrides, "objective=lens"), folder=logs, real=True)
    assert result.code == 2
    (error,) = result.errors()
    assert "trainer.num_prompts_per_step=1: must be a multiple of 2, the number of processes" in error
    (finished,) = tmp_path.glob("sweeps/tiny/*/summary.json")
    assert_trained_by_two(finished.parent)


@pytest.mark.slow
def test_each_job_of_a_sweep_by_submitit_may_have_several_processes(command, logs, tmp_path):
    launcher = "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"
    result = run(*sweeping(command, tmp_path, "trainer.max_steps=2", "jobs=1", *launcher), folder=logs, real=True)
    assert result.code == 0, result.stderr
    for objective in ("grpo", "lens"):
        (job,) = tmp_path.glob(f"sweeps/tiny/{objective}-seed0-*")
        assert_trained_by_two(job)


def test_a_sweep_under_torchrun_is_refused_by_the_first_though_it_comes_last(command, logs, tmp_path):
    late = "import os, time\nif os.environ.get('RANK') == '0':\n    time.sleep(8)\n"
    (tmp_path / "sitecustomize.py").write_text(late)
    env = environment(PYTHONPATH=str(tmp_path))
    result = run(*sweeping(command, tmp_path), folder=logs, real=True, processes=2, env=env)
    (error,) = result.errors()
    assert error.startswith("error: --multirun: not under torchrun; hydra.launcher.processes_per_job=N")


# --- putting together ------------------------------------------------------------------------------------------------


def part_of(prompts: list[Prompt], longest: int) -> Rollouts:
    lengths = torch.tensor([1 + int(prompt.problem_id) % longest for prompt in prompts for _ in range(2)])
    texts = [f"{prompt.problem_id}/{sample}" for prompt in prompts for sample in range(2)]
    ids = torch.tensor([int(prompt.problem_id) for prompt in prompts for _ in range(2)])
    ids = ids[:, None] * (torch.arange(int(lengths.max())) < lengths[:, None])
    return Rollouts(prompts, 2, ids, -ids.float(), lengths, ["stop" if n == 1 else "length" for n in lengths], texts)


@pytest.mark.parametrize("engines", [1, 2, 3, 4])
def test_shares_are_put_together_in_the_order_of_the_questions(engines):
    prompts = [Prompt(str(number), (1,)) for number in range(1, 8)]
    parts = [part_of(prompts[first::engines], 3) for first in range(engines)]
    found = merge_rollouts(prompts, parts)
    assert found.texts == [f"{number}/{sample}" for number in range(1, 8) for sample in range(2)]
    assert found.lengths.tolist() == [1 + number % 3 for number in range(1, 8) for _ in range(2)]
    assert found.finish_reasons == ["stop" if number % 3 == 0 else "length" for number in range(1, 8) for _ in range(2)]
    for row, number in enumerate(number for number in range(1, 8) for _ in range(2)):
        assert set(found.completion_ids[row, : found.lengths[row]].tolist()) == {number}
    assert torch.equal(found.logprobs, -found.completion_ids.float())
