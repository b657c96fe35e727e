"""Runs from the command line: what they leave behind, that they repeat themselves, stop, go on and end the same."""

from __future__ import annotations

import json
import math
import re
import resource
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lens.files import CONFIGS
from lens.runs.checkpoints import load_state
from lens.runs.run import FAILURE
from lens.training.train_state import choose_questions
from tests.support.command_line import (
    Command,
    assert_one_wandb_run,
    assert_same_end,
    metrics_of,
    read_wandb,
    run,
    steps_in,
    training,
    wandb_history,
    weights_of,
)

STEP_METRICS = {
    "train/global_step",
    "epoch",
    "loss",
    "kl",
    "entropy",
    "grad_norm",
    "learning_rate",
    "empty_step",
    "tokens_per_second",
    "tokens/trained",
    "total/tokens_generated",
    "total/tokens_trained",
    "reward",
    "reward/calibrated",
    "confidence/correct_mean",
    "confidence/incorrect_mean",
    *(f"groups/frac_{kind}" for kind in ("negative", "mixed", "positive")),
    "groups/advantage_share_negative",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    *(f"completions/{name}" for name in ("mean_length", "clipped_ratio", "valid_ratio", "trained")),
    *(f"grading/{name}_rate" for name in ("no_answer", "error", "timeout")),
    *(f"time/{name}_s" for name in ("sample", "grade", "logprobs", "update", "step")),
}
EVALUATED = ("", *(f"level_{level}/" for level in range(1, 6)), "levels_4-5/")
OBJECTIVES = sorted(file.stem for file in (CONFIGS / "objective").glob("*.yaml"))


@pytest.fixture(scope="module")
def first(pupil, logs, tmp_path_factory):
    """A run as a user starts it: (how it ended, its folder, its command)."""
    outputs = tmp_path_factory.mktemp("first")
    command = training(pupil, outputs)
    result = run(*command, folder=logs, real=True)
    (folder,) = (outputs / "runs").iterdir()
    return result, folder, command


# --- one run ---------------------------------------------------------------------------------------------------------


def test_a_run_ends_well_and_says_what_it_does(first):
    result, folder, _ = first
    assert result.code == 0, result.stderr
    plan = next(line for line in result.stdout.splitlines() if "Plan:" in line)
    for part in (
        "20 problems (0 too long)",
        "a round is 4 questions x 4 answers of at most 26 tokens = 16 answers",
        "1 update(s) a round of 16 answers each",
        "5 steps an epoch, 4 steps = 0.80 epochs",
        "evaluation every 2 steps on 20 problems x 4 samples",
    ):
        assert part in plan
    assert result.stdout.splitlines()[-1].endswith(str(folder))
    assert "Finished at step 4 (eval/arithmetic/pass@1 " in result.stdout
    assert "4/4" in result.stderr  # the progress bar


def test_a_run_folder_holds_what_its_readme_says(first):
    _, folder, _ = first
    found = {path.name for path in folder.iterdir()}
    files = {
        "metrics.jsonl",
        "provenance.json",
        "contamination.json",
        "failing_golds.json",
        "summary.json",
        "train.log",
    }
    assert found == files | {".hydra", "evaluations", "rollouts", "checkpoints", "wandb"}
    assert {path.name for path in (folder / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert folder.name.endswith("_lens-seed0")
    contamination = json.loads((folder / "contamination.json").read_text())
    assert contamination["arithmetic"]["count"] == 20
    assert json.loads((folder / "summary.json").read_text())["contamination"]["arithmetic"]["count"] == 20
    assert not list(folder.rglob("*.unfinished"))


def test_metrics_have_the_names_of_the_field(first):
    _, folder, _ = first
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/global_step"] for line in lines] == [0, 1, 2, 2, 3, 4, 4]
    steps = [line for line in lines if "reward" in line]
    evaluations = [line for line in lines if "reward" not in line]
    for line in steps:
        assert line.keys() >= STEP_METRICS - {"confidence/correct_mean"}  # a batch may have no correct answer
        assert all(math.isfinite(value) for value in line.values())
        kinds = [line[f"groups/frac_{kind}"] for kind in ("negative", "mixed", "positive")]
        assert sum(kinds) == pytest.approx(1)
        assert line["time/step_s"] >= line["time/sample_s"] + line["time/update_s"]
        assert 0 < line["entropy"] < 6
    assert all("time/sync_s" in line for line in steps[1:])
    for step, line in enumerate(steps, start=1):
        measured = {"groups/grad_norm_share_negative", "groups/grad_cosine"} <= line.keys()
        assert measured == (step == 1 or step % 2 == 0)
    assert any("confidence/correct_mean" in line for line in steps)
    assert any("groups/frac_negative/level_5" in line for line in steps)
    for line in evaluations:
        assert line.keys() >= {f"eval/arithmetic/{part}pass@{k}" for part in EVALUATED for k in (1, 2, 4)}
        assert line["eval/arithmetic/pass@1"] <= line["eval/arithmetic/pass@2"] <= line["eval/arithmetic/pass@4"]
    assert evaluations[0]["eval/arithmetic/level_1/pass@1"] > evaluations[0]["eval/arithmetic/level_5/pass@1"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["step"] == 4
    assert summary["metrics"].items() <= evaluations[-1].items()


def test_evaluations_have_a_row_a_problem_and_the_answers_beside_them(first):
    _, folder, _ = first
    names = sorted(file.name for file in (folder / "evaluations").iterdir())
    assert names == [f"step_{step:06d}{kind}.parquet" for step in (0, 2, 4) for kind in ("", "_completions")]
    rows = pd.read_parquet(folder / "evaluations" / "step_000004.parquet")
    assert list(rows.columns[:6]) == ["set", "id", "level", "subject", "n", "correct"]
    assert len(rows) == rows["id"].nunique() == 20
    assert rows["level"].value_counts().to_dict() == dict.fromkeys(range(1, 6), 4)
    assert (rows["n"] == 4).all()
    assert rows["correct"].between(0, 4).all()
    answers = pd.read_parquet(folder / "evaluations" / "step_000004_completions.parquet")
    assert len(answers) == 80
    correct = answers["verdict"].eq("correct").groupby(answers["id"]).sum()
    assert (rows.set_index("id")["correct"] == correct.loc[rows["id"]]).all()
    share = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["eval/arithmetic/pass@1"]
    assert correct.sum() / 80 == pytest.approx(share)


def test_rollouts_have_a_row_a_completion(first):
    _, folder, _ = first
    names = sorted(file.name for file in (folder / "rollouts").iterdir())
    assert names == [f"step_{step:06d}.parquet" for step in (1, 2, 3, 4)]
    lines = [line for line in metrics_of(folder) if "reward" in line]
    seen = []
    for name, line in zip(names, lines, strict=True):
        rows = pd.read_parquet(folder / "rollouts" / name)
        assert set(rows.columns) == {
            *("problem_id", "level", "sample", "prompt_ids", "completion_ids", "logprobs", "length", "finish_reason"),
            *("text", "answer", "verdict", "valid", "confidence", "calibrated_reward", "advantage"),
        }
        assert len(rows) == 16
        assert (rows.groupby("problem_id")["sample"].apply(list).map(tuple) == (0, 1, 2, 3)).all()
        assert (rows["completion_ids"].map(len) == rows["length"]).all()
        assert (rows["logprobs"].map(len) == rows["length"]).all()
        confidence = rows["logprobs"].map(lambda row: math.exp(np.mean(row, dtype=float)))
        np.testing.assert_allclose(rows["confidence"], confidence, rtol=1e-5)
        assert rows["verdict"].eq("correct").mean() == pytest.approx(line["reward"])
        assert rows["calibrated_reward"].mean() == pytest.approx(line["reward/calibrated"], abs=1e-6)
        assert rows.groupby("problem_id")["advantage"].sum().abs().max() < 1e-5
        assert set(rows["finish_reason"]) <= {"stop", "length"}
        seen += rows["problem_id"].unique().tolist()
    assert len(seen) == len(set(seen)) == 16  # no problem twice in an epoch


def test_provenance_says_where_a_result_comes_from(first):
    _, folder, command = first
    found = json.loads((folder / "provenance.json").read_text())
    assert found["command"][1:] == [str(argument) for argument in command[1:]]
    assert set(found["git"]) == {"commit", "dirty"}
    assert found["git"]["commit"] is None or len(found["git"]["commit"]) == 40
    assert found["git"]["dirty"] in (None, True, False)
    assert found["packages"]["torch"] == torch.__version__
    assert {"transformers", "hydra-core", "wandb", "datasets", "math-verify"} <= set(found["packages"])
    assert {"platform", "processor", "cpus", "threads", "gpus"} <= set(found["machine"])
    assert found["machine"]["threads"] == 1


def test_a_checkpoint_is_a_hugging_face_model(first, pupil):
    _, folder, _ = first
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert checkpoint.name == "step_000004"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    before = AutoModelForCausalLM.from_pretrained(pupil).state_dict()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert tokenizer.decode(tokenizer("Compute $ 2 + 3 $ .").input_ids) == "Compute $ 2 + 3 $ ."
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(pupil).chat_template


def test_wandb_is_fed_the_same_values(first):
    _, folder, _ = first
    records = read_wandb(folder)
    (started,) = (record.run for record in records if record.HasField("run"))
    assert (started.project, started.run_group, started.display_name) == ("lens", "tiny", "lens-seed0")
    assert list(started.tags) == ["tiny", "lens", "tiny", "arithmetic", "transformers"]
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert config["trainer"]["rollouts"]["num_generations"] == 4
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    axes = [record.metric for record in records if record.HasField("metric")]
    assert {axis.step_metric for axis in axes if axis.glob_name == "*"} == {"train/global_step"}

    assert_one_wandb_run(folder)
    tables = [line for line in wandb_history(folder) if any(name.startswith("eval/completions") for name in line)]
    assert [line["train/global_step"] for line in tables] == [0, 2, 4]


def test_what_is_printed_to_a_file_has_no_terminal_codes(first):
    result, _, _ = first
    assert "\x1b" not in result.stdout + result.stderr


def test_the_same_command_gives_the_same_numbers(first, logs):
    _, folder, command = first
    again = folder.parent / "again"
    result = run(*command, f"hydra.run.dir={again}", folder=logs)
    assert result.code == 0, result.stderr
    assert_same_end(again, folder)


def test_another_seed_gives_other_numbers(first, logs):
    _, folder, command = first
    other = folder.parent / "other"
    result = run(*command, f"hydra.run.dir={other}", "seed=1", "tracking.wandb.mode=disabled", folder=logs)
    assert result.code == 0, result.stderr
    assert weights_of(other) != weights_of(folder)
    assert metrics_of(other)[1] != metrics_of(folder)[1]
    assert not list(other.glob("wandb/*run-*"))


def test_a_finished_run_is_left_alone(first, logs):
    _, folder, command = first
    rewritten = {".hydra", "train.log"}  # by Hydra itself
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if not rewritten & {*path.parts}}
    result = run(*command, f"hydra.run.dir={folder}", folder=logs)
    assert result.code == 0
    assert "Already finished at step 4" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_every_objective_trains(pupil, logs, tmp_path):
    command = training(pupil, tmp_path, max_steps=2, num_prompts_per_rollout=8, num_prompts_per_step=8)
    options = ["evaluation.every=0", "evaluation.num_samples=1", "tracking.wandb.mode=disabled", "dataset.seed=0"]
    sweep = [command[0], "-m", *command[1:], f"objective={','.join(OBJECTIVES)}", "hydra/launcher=basic"]
    result = run(*sweep, *options, folder=logs)
    assert result.code == 0, result.stderr
    ends, started = {}, []
    for objective in OBJECTIVES:
        (folder,) = (tmp_path / "sweeps" / "tiny").glob(f"{objective}-seed0-*")
        ends[objective] = weights_of(folder)
        before, step, *_ = metrics_of(folder)
        teaching = step["groups/advantage_share_negative"]
        assert step["groups/frac_negative"] > 0, "no negative group, nothing to tell objectives apart by"
        if objective in ("grpo", "lens_mixed_only", "lens_rho_policy"):
            assert teaching == step["groups/grad_norm_share_negative"] == 0
        else:
            assert 0 < teaching < 1
            assert 0 < step["groups/grad_norm_share_negative"] < 1
        assert step["grad_norm"] > 0
        started.append(before)
    assert started == started[:1] * len(OBJECTIVES)  # the same draws for everyone
    assert len(set(ends.values())) == len(OBJECTIVES)


# --- going on --------------------------------------------------------------------------------------------------------

RESUMED = {
    "a round a step": ({}, ["objective=lens"], 2),
    "in mixed precision": ({"autocast": "bfloat16"}, ["objective=lens"], 2),
    "in the middle of a round": ({"num_prompts_per_rollout": 16}, ["evaluation.every=1"], 1),
    "over the end of an epoch, with random numbers": (
        {"num_prompts_per_rollout": 8, "learning_rate": 1e-3},
        ["objective=lens_shuffled", "evaluation.every=3"],
        3,
    ),
}


COMPILED = pytest.param({"torch_compile": "true"}, [], 2, id="with compiled layers", marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("keys", "overrides", "stop"), [*(pytest.param(*case, id=name) for name, case in RESUMED.items()), COMPILED]
)
def test_a_resumed_run_ends_like_one_that_never_stopped(pupil, logs, tmp_path, keys, overrides, stop):
    folders = {name: tmp_path / name for name in ("whole", "parts")}
    command = training(pupil, tmp_path, *overrides, **keys, checkpoint_every=1)
    longer = ["trainer.max_steps=6" if stop == 3 else "trainer.max_steps=4"]
    whole = Command(*command, *longer, f"hydra.run.dir={folders['whole']}", folder=logs)
    part = [*command, f"hydra.run.dir={folders['parts']}"]
    assert run(*part, f"trainer.max_steps={stop}", folder=logs).code == 0
    assert json.loads((folders["parts"] / "summary.json").read_text())["step"] == stop
    halfway = weights_of(folders["parts"])
    rest = run(*part, *longer, "resume=must", folder=logs)
    assert rest.code == 0, rest.stderr
    assert f"Resuming from step {stop}" in rest.stdout
    assert weights_of(folders["parts"]) != halfway
    assert whole.wait().code == 0, whole.wait().stderr
    assert_same_end(folders["parts"], folders["whole"])

    assert len([record for record in read_wandb(folders["parts"]) if record.HasField("run")]) == 2
    assert_one_wandb_run(folders["parts"])


def test_an_epoch_meets_every_problem_once_and_the_next_in_another_order():
    rounds = [choose_questions(22, 4, seed=3, number=number) for number in range(10)]
    first, second = ([problem for questions in epoch for problem in questions] for epoch in (rounds[:5], rounds[5:]))
    assert len(set(first)) == len(set(second)) == 20
    assert first != second
    assert choose_questions(22, 4, seed=3, number=7) == rounds[7]
    assert choose_questions(22, 4, seed=4, number=7) != rounds[7]


def test_resume_refuses_what_it_was_told_to_refuse(first, logs, tmp_path):
    _, folder, command = first
    before = sorted(folder.rglob("*"))
    never = run(*command, f"hydra.run.dir={folder}", "resume=never", folder=logs)
    assert never.code == 2
    assert never.one_line().startswith("error: resume='never': ")
    assert "step_000004" in never.one_line()
    assert sorted(folder.rglob("*")) == before
    must = run(*command, f"hydra.run.dir={tmp_path / 'new'}", "resume=must", folder=logs)
    assert must.code == 2
    assert must.one_line().startswith("error: resume='must': ")
    assert not (tmp_path / "new").exists()


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


DAMAGES = {
    "a flipped byte among the weights": ("model.safetensors", lambda file: flip(file, -100)),
    "a flipped byte in the weights' header": ("model.safetensors", lambda file: flip(file, 3)),
    "a flipped byte in the training state": ("training_state.pt", lambda file: flip(file, 5000)),
    "no weights": ("model.safetensors", Path.unlink),
    "no tokenizer": ("tokenizer.json", Path.unlink),
    "no checksums": ("checksums.json", Path.unlink),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_refused(first, logs, tmp_path, name, damage):
    _, folder, command = first
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy / "checkpoints" / "step_000004" / name)
    before = sorted(copy.rglob("*"))
    result = run(*command, f"hydra.run.dir={copy}", "trainer.max_steps=6", folder=logs)
    assert result.code == 2
    line = result.one_line()
    assert line.startswith("error: resume=")
    assert str(copy / "checkpoints" / "step_000004") in line
    assert name in line
    assert sorted(copy.rglob("*")) == before


def test_a_half_written_checkpoint_is_ignored(first, logs, tmp_path):
    _, folder, command = first
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for step in (6, 99):
        unfinished = copy / "checkpoints" / f"step_{step:06d}.unfinished"
        unfinished.mkdir()
        (unfinished / "model.safetensors").write_bytes(b"half")
    result = run(*command, f"hydra.run.dir={copy}", "trainer.max_steps=6", folder=logs)
    assert result.code == 0, result.stderr
    assert "Resuming from step 4" in result.stdout
    assert (copy / "checkpoints" / "step_000006" / "training_state.pt").exists()
    assert not (copy / "checkpoints" / "step_000006.unfinished").exists()


# --- stopping --------------------------------------------------------------------------------------------------------

STEPS = 16


@pytest.fixture(scope="module")
def long_command(pupil, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("stopped")
    keys = {"max_steps": STEPS, "checkpoint_every": 4, "rollouts_every": 4}
    return training(pupil, outputs, "evaluation.every=8", **keys), outputs


@pytest.fixture(scope="module")
def uninterrupted(long_command, logs) -> Path:
    command, outputs = long_command
    result = run(*command, f"hydra.run.dir={outputs / 'whole'}", folder=logs)
    assert result.code == 0, result.stderr
    return outputs / "whole"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_ends_the_same(long_command, uninterrupted, logs, tmp_path, number):
    command, _ = long_command
    named = [f"hydra.run.dir={tmp_path / 'named'}"] if number == signal.SIGINT else [f"outputs={tmp_path}"]
    running = Command(*command, *named, folder=logs)

    def folder() -> Path:
        return next(iter(tmp_path.glob("runs/*")), tmp_path / "named")

    running.wait_until(lambda: steps_in(folder()) >= 2)
    running.signal(number)
    result = running.wait()
    assert result.code == 130, result.stderr
    line = result.one_line()
    assert line.startswith("stopped: ")
    (checkpoint,) = (folder() / "checkpoints").iterdir()
    stopped_at = int(checkpoint.name.removeprefix("step_"))
    assert 2 <= stopped_at < STEPS
    assert f"step {stopped_at} of {STEPS}" in line
    assert steps_in(folder()) == stopped_at
    assert not (folder() / "summary.json").exists()
    assert ("Stopping after this step" if number == signal.SIGINT else "Stopping now") in result.stdout

    program, *again = shlex.split(line.partition("to resume: ")[2])
    assert program == "python"
    rest = run(*again, folder=logs)
    assert rest.code == 0, rest.stderr
    assert f"Resuming from step {stopped_at}" in rest.stdout
    assert_same_end(folder(), uninterrupted)


@pytest.fixture
def waiting(tmp_path, long_command):
    """(the file that a run's sampler waits for to be removed, the command, its run folder)."""
    command, _ = long_command
    file, folder = tmp_path / "wait", tmp_path / "run"
    sampler = ["sampler._target_=tests.support.faults.WaitingSampler", f"+sampler.while_exists={file}"]
    return file, [*command, *sampler, f"hydra.run.dir={folder}"], folder


def test_a_second_ctrl_c_stops_at_once_and_the_folder_stays_resumable(waiting, uninterrupted, logs):
    file, command, folder = waiting
    running = Command(*command, folder=logs)
    running.wait_until(lambda: steps_in(folder) >= 5)
    file.touch()
    running.wait_until(file.with_suffix(".reached").exists)  # no step ends from now on
    running.signal(signal.SIGINT)
    running.wait_until(lambda: "Ctrl-C again stops at once" in running.stdout.read_text())
    time.sleep(1)
    before, reached = sorted((folder / "checkpoints").rglob("*")), steps_in(folder)
    running.signal(signal.SIGINT)
    result = running.wait()
    assert result.code == 130, result.stderr
    line = result.one_line()
    assert line.startswith("stopped: ")
    assert f"hydra.run.dir={folder}" in line
    assert sorted((folder / "checkpoints").rglob("*")) == before
    assert steps_in(folder) == reached

    file.unlink()
    rest = run(*command, "resume=must", folder=logs)
    assert rest.code == 0, rest.stderr
    assert_same_end(folder, uninterrupted)


@pytest.mark.parametrize("step", [0, 5, 8])  # before the first evaluation, in sampling, in an evaluation
def test_sigterm_writes_a_checkpoint_at_once_however_long_a_step_is(waiting, uninterrupted, logs, step):
    file, command, folder = waiting
    if step == 0:
        file.touch()
    running = Command(*command, folder=logs)
    running.wait_until(lambda: steps_in(folder) >= step if step else "Plan:" in running.stdout.read_text())
    file.touch()
    time.sleep(1)
    asked = time.monotonic()
    running.signal(signal.SIGTERM)
    result = running.wait()
    assert time.monotonic() - asked < 30
    assert file.exists()
    assert result.code == (130 if step or "Stopping now" in result.stdout else -signal.SIGTERM), result.stderr
    if result.code == 130:
        reached = steps_in(folder)
        assert f"at step {reached} of {STEPS}" in result.one_line()
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step_{reached:06d}"]

    file.unlink()
    rest = run(*command, folder=logs)
    assert rest.code == 0, rest.stderr
    assert_same_end(folder, uninterrupted)
    assert_one_wandb_run(folder)


def test_where_a_round_is_one_update_its_own_log_probabilities_do(pupil, logs, tmp_path):
    ends = {}
    for source in ("trainer", "current"):
        folder = tmp_path / source
        result = run(*training(pupil, tmp_path, old_logprobs=source), f"hydra.run.dir={folder}", folder=logs)
        assert result.code == 0, result.stderr
        ends[source] = [line for line in metrics_of(folder) if "reward" in line]
    for line, other in zip(ends["current"], ends["trainer"], strict=True):
        assert "sampling/logp_difference_max" in other and "sampling/logp_difference_max" not in line
        for name in ("reward", "loss", "grad_norm", "groups/frac_negative"):
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)


@contextmanager
def full_disk(folder: Path, pid: int, left: int):
    """A small file system that is full but for some bytes."""
    free = shutil.disk_usage(folder).free
    with (folder / "filler").open("wb") as filler:
        filler.write(b"0" * (free - left))
    yield
    (folder / "filler").unlink()


@contextmanager
def small_files(folder: Path, pid: int, left: int):
    """No file may grow above some bytes."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (left, left))
    yield


@pytest.mark.parametrize("fault", ["small files", "half a checkpoint fits", "nothing fits"])
def test_where_a_checkpoint_cannot_be_written_the_run_stops_and_the_last_one_is_whole(
    waiting, uninterrupted, logs, tmp_path, request, fault
):
    file, command, folder = waiting
    if fault != "small files":
        folder.mkdir()
        size = "-o", "size=32m"
        if subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("a file system of its own needs the right to mount one")
        request.addfinalizer(lambda: subprocess.run(["umount", "-l", folder], check=True))
    running = Command(*command, folder=logs)
    running.wait_until(lambda: steps_in(folder) >= 5)
    file.touch()
    time.sleep(1)
    reached = steps_in(folder)
    assert reached < STEPS - 4
    (checkpoint,) = (folder / "checkpoints").glob("step_*")
    largest = max(path.stat().st_size for path in checkpoint.rglob("*"))
    break_disk = small_files if fault == "small files" else full_disk
    with break_disk(folder, running.process.pid, 0 if fault == "nothing fits" else largest // 2):
        file.unlink()
        result = running.wait()
        assert result.code == 1, result.stderr
        line = result.one_line()
        assert line.startswith("failed: ")
        assert "Traceback" not in result.stdout + result.stderr
        assert "; to resume: python " in line
        if fault != "nothing fits":
            assert "could not be written" in line
            assert f"the last complete one is {checkpoint.name}" in line
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [checkpoint.name]
        load_state(checkpoint)
    rest = run(*command, folder=logs)
    assert rest.code == 0, rest.stderr
    assert f"Resuming from step {int(checkpoint.name[5:])}" in rest.stdout
    assert_same_end(folder, uninterrupted)
    assert_one_wandb_run(folder)


def test_a_run_that_died_before_its_summary_still_writes_it(uninterrupted, long_command, logs, tmp_path):
    command, _ = long_command
    copy = tmp_path / "copy"
    shutil.copytree(uninterrupted, copy)
    (copy / "summary.json").unlink()
    result = run(*command, f"hydra.run.dir={copy}", folder=logs)
    assert result.code == 0, result.stderr
    assert_same_end(copy, uninterrupted)


# --- guards ----------------------------------------------------------------------------------------------------------

INFINITE = ["objective=grpo", "objective._target_=tests.support.faults.infinite_advantages"]


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_its_cause(pupil, logs, tmp_path):
    sizes = {"num_prompts_per_rollout": 8, "rollouts_every": 0, "max_tokens_per_microbatch": 180}
    folder = tmp_path / "run"
    result = run(*training(pupil, tmp_path, *INFINITE, **sizes), f"hydra.run.dir={folder}", folder=logs)
    assert result.code == 1, result.stderr
    line = result.one_line()
    rollouts = folder / "rollouts" / "step_000001.parquet"
    assert re.match(r"failed: step 1: micro-batch \d+ of \d+ \(\d answers to \S+.*\) has loss -?inf", line)
    assert f"its rollouts: {rollouts}" in line
    rows = pd.read_parquet(rollouts)
    assert len(rows) == 8 * 4
    assert rows["answer"].notna().all()
    assert np.isinf(rows["advantage"]).sum() == 1
    assert rows.loc[np.isinf(rows["advantage"]), "problem_id"].item() in line
    assert not (folder / "summary.json").exists()
    assert not (folder / "checkpoints").exists()


def test_updates_that_are_not_finite_can_be_left_out(pupil, logs, tmp_path):
    folder = tmp_path / "run"
    sizes = {"num_prompts_per_rollout": 8, "non_finite": "skip", "rollouts_every": 0, "learning_rate": 1e-2}
    command = training(pupil, tmp_path, *INFINITE, "tracking.wandb.mode=disabled", **sizes)
    result = run(*command, f"hydra.run.dir={folder}", folder=logs)
    assert result.code == 0, result.stderr
    steps = [line for line in metrics_of(folder) if "reward" in line]
    assert [line["total/updates_skipped"] for line in steps] == [1, 1, 2, 2]  # the first mini-batch of each round
    assert [{"loss", "grad_norm"} <= line.keys() for line in steps] == [False, True, False, True]
    assert result.stdout.count("this update is skipped") == 2
    assert sorted(file.name for file in (folder / "rollouts").iterdir()) == [
        "step_000001.parquet",
        "step_000003.parquet",
    ]


def test_an_entropy_over_the_limit_stops_the_run_with_a_checkpoint(pupil, logs, tmp_path):
    folder = tmp_path / "run"
    command = [*training(pupil, tmp_path, "tracking.wandb.mode=disabled"), f"hydra.run.dir={folder}"]
    result = run(*command, "trainer.max_entropy=1e-6", folder=logs)
    assert result.code == 1, result.stderr
    assert re.match(r"failed: step 1: entropy 0\.\d+ > trainer.max_entropy=1e-06; to resume: ", result.one_line())
    assert load_state(folder / "checkpoints" / "step_000001")["step"] == 1
    assert re.fullmatch(r"step 1: entropy 0\.\d+ > trainer.max_entropy=1e-06\n", (folder / FAILURE).read_text())
    rest = run(*command, "resume=must", folder=logs)
    assert rest.code == 0, rest.stderr
    assert not (folder / FAILURE).exists()
