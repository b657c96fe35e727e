"""Runs that resume: they end as one that never stopped, and refuse what they cannot resume from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.command_line import (
    Command,
    assert_one_wandb_run,
    assert_same_end,
    read_wandb,
    run,
    training,
    weights_of,
)


@pytest.fixture(scope="module")
def first(pupil, logs, tmp_path_factory):
    """A finished run: (its folder, its command)."""
    outputs = tmp_path_factory.mktemp("first")
    command = training(pupil, outputs)
    result = run(*command, folder=logs)
    assert result.code == 0, result.stderr
    (folder,) = (outputs / "runs").iterdir()
    return folder, command


RESUMED = {
    "a round a step": ({}, ["objective=lens"], 2),
    "in mixed precision": ({"autocast": "bfloat16"}, ["objective=lens"], 2),
    "in bfloat16, with master weights": ({"learning_rate": 1e-5}, ["model.dtype=bfloat16", "objective=lens"], 2),
    "with adapters in bfloat16": ({}, ["model.dtype=bfloat16", "model/lora=default", "model.lora.r=4"], 2),
    "in the middle of a round": ({"num_prompts_per_rollout": 16}, ["evaluation.every=1"], 1),
    "with objectives that remember, and few answers of negative groups": (
        {"num_prompts_per_rollout": 8, "learning_rate": 1e-3},
        ["objective=share", "objective@objective.objective=pass_g", "trainer.negative_answers=2", "evaluation.every=1"],
        3,
    ),
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


def test_resume_refuses_what_it_was_told_to_refuse(first, logs, tmp_path):
    folder, command = first
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
    folder, command = first
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
    folder, command = first
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
