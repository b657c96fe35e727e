"""Checkpoints are whole or absent, hold everything, and show damage."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim import AdamW

from lens import __version__
from lens.errors import ConfigError, RunFailed
from lens.runs import checkpoints
from lens.runs.checkpoints import (
    CHECKSUMS_FILE,
    OPTIMIZER_FOLDER,
    STATE_FILE,
    checksum,
    list_checkpoints,
    load_state,
    restore_replaced_name,
    save_checkpoint,
)
from lens.seeding import restore_random_states
from tests.support.faults import no_file_above

STATE = {"config": {"seed": 0}, "prompts": {}}  # what every state holds, besides its step


@pytest.fixture
def saved(tiny, tmp_path):
    """(folder of checkpoints, the checkpoint in it), of step 2."""
    return tmp_path, save_checkpoint(
        tmp_path, *tiny, AdamW(tiny[0].parameters()), STATE | {"step": 2, "values": torch.arange(3)}, keep=1
    )


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_holds_weights_tokenizer_state_and_checksums(saved, tiny):
    folder, checkpoint = saved
    assert names(folder) == ["step_000002"]
    assert {"model.safetensors", "config.json", "tokenizer.json", STATE_FILE, CHECKSUMS_FILE} <= set(names(checkpoint))
    sums = json.loads((checkpoint / CHECKSUMS_FILE).read_text())
    assert set(sums) == set(names(checkpoint)) - {CHECKSUMS_FILE}
    assert all(checksum(checkpoint / name) == value for name, value in sums.items())
    weights = load_file(checkpoint / "model.safetensors")
    for name, tensor in tiny[0].state_dict().items():
        assert name not in weights or torch.equal(weights[name], tensor)
    state = load_state(checkpoint)
    assert state["step"] == 2
    assert torch.equal(state["values"], torch.arange(3))


def test_the_latest_are_kept_in_the_order_of_their_steps(tiny, tmp_path):
    for step in (1, 9, 10, 100_000):
        save_checkpoint(tmp_path, *tiny, AdamW(tiny[0].parameters()), {"step": step}, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000010", "step_100000"]
    assert names(tmp_path) == ["step_000010", "step_100000"]


def test_the_best_is_kept_besides_the_latest_until_there_is_a_better_one(tiny, tmp_path):
    for step, best in ((1, 1), (2, 1), (3, 1), (4, 4), (5, 4)):
        save_checkpoint(tmp_path, *tiny, AdamW(tiny[0].parameters()), {"step": step}, keep=2, best=best)
        kept = {1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [3, 4], 5: [4, 5]}[step]
        assert names(tmp_path) == [f"step_{number:06d}" for number in kept]


def test_what_stands_after_this_step_is_not_counted_among_the_latest(tiny, tmp_path):
    save_checkpoint(
        tmp_path, *tiny, AdamW(tiny[0].parameters()), {"step": 9}, keep=1
    )  # such as a damaged one, which a run has fallen back from
    save_checkpoint(tmp_path, *tiny, AdamW(tiny[0].parameters()), {"step": 3}, keep=1)
    save_checkpoint(tmp_path, *tiny, AdamW(tiny[0].parameters()), {"step": 4}, keep=1)
    assert names(tmp_path) == ["step_000004", "step_000009"]


def test_a_step_that_is_saved_again_replaces_the_first(saved, tiny):
    folder, checkpoint = saved
    save_checkpoint(folder, *tiny, AdamW(tiny[0].parameters()), STATE | {"step": 2, "values": torch.zeros(1)}, keep=1)
    assert names(folder) == ["step_000002"]
    assert torch.equal(load_state(checkpoint)["values"], torch.zeros(1))


def test_there_are_none_where_there_is_no_folder(tmp_path):
    assert list_checkpoints(tmp_path / "absent") == []


class CrashError(Exception):
    pass


def test_where_nothing_can_be_written_the_run_fails_and_gives_the_space_back(saved, tiny):
    folder, _ = saved
    with no_file_above(10_000):
        with pytest.raises(RunFailed, match=r"step_000004 could not be written .+ last complete one is step_000002"):
            save_checkpoint(folder, *tiny, AdamW(tiny[0].parameters()), STATE | {"step": 4}, keep=1)
        with pytest.raises(RunFailed, match=r"there is no earlier one"):
            save_checkpoint(folder / "empty", *tiny, AdamW(tiny[0].parameters()), STATE | {"step": 4}, keep=1)
    assert names(folder) == ["empty", "step_000002"]
    assert not names(folder / "empty")
    assert load_state(folder / "step_000002")["step"] == 2


@pytest.mark.parametrize("point", ["save_pretrained", "torch.save", "flush_to_disk", "rename"])
def test_a_crash_at_any_point_leaves_the_last_checkpoint_whole(saved, tiny, monkeypatch, point):
    folder, before = saved
    model, tokenizer = tiny

    def crash(*args, **kwargs):
        raise CrashError

    with monkeypatch.context() as patch:
        owner, name = {
            "save_pretrained": (tokenizer, "save_pretrained"),
            "torch.save": (torch, "save"),
            "flush_to_disk": (checkpoints, "flush_to_disk"),
            "rename": (type(folder), "rename"),
        }[point]
        patch.setattr(owner, name, crash)
        with pytest.raises(CrashError):
            save_checkpoint(folder, model, tokenizer, AdamW(model.parameters()), STATE | {"step": 4}, keep=1)
    assert [path.name for path in list_checkpoints(folder)] == ["step_000002"]
    assert load_state(before)["step"] == 2
    save_checkpoint(
        folder, model, tokenizer, AdamW(model.parameters()), STATE | {"step": 4}, keep=1
    )  # over what the crash left
    assert names(folder) == ["step_000004"]
    assert load_state(folder / "step_000004")["step"] == 4


@pytest.mark.parametrize("survived", [0, 1])
def test_a_crash_while_a_checkpoint_takes_the_place_of_the_same_step_loses_none(saved, tiny, monkeypatch, survived):
    folder, before = saved
    model, tokenizer = tiny
    rename, calls = type(folder).rename, []

    def crash(*args):
        calls.append(args)
        if len(calls) > survived:
            raise CrashError
        return rename(*args)

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "rename", crash)
        with pytest.raises(CrashError):
            save_checkpoint(
                folder, model, tokenizer, AdamW(model.parameters()), STATE | {"step": 2, "lines": 99}, keep=1
            )
    assert before.exists() == (survived == 0)
    restore_replaced_name(folder)
    assert list_checkpoints(folder) == [before]
    assert "lines" not in load_state(before)
    save_checkpoint(folder, model, tokenizer, AdamW(model.parameters()), STATE | {"step": 2, "lines": 99}, keep=1)
    assert names(folder) == ["step_000002"]
    assert load_state(before)["lines"] == 99


def test_all_is_on_disk_before_it_gets_its_name_and_the_name_before_the_former_goes(saved, tiny, monkeypatch):
    folder, former = saved
    seen: list[tuple[str, str]] = []

    def note(owner: object, name: str, path_of: Callable[..., object]) -> None:
        function = getattr(owner, name)

        def noted(*arguments, **options):
            seen.append((name, os.path.relpath(path_of(*arguments), folder)))
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, noted)

    note(os, "fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    note(type(folder), "rename", lambda path, target: target)
    note(shutil, "rmtree", lambda path, **_: path)
    optimizer = AdamW(tiny[0].parameters())
    tiny[0](torch.tensor([[1, 2]])).logits.sum().backward()
    optimizer.step()
    target = save_checkpoint(folder, *tiny, optimizer, STATE | {"step": 4}, keep=1)
    renamed = seen.index(("rename", "step_000004"))
    flushed = {path for name, path in seen[:renamed] if name == "fsync"}
    inside = {str(path.relative_to(target)) for path in target.rglob("*")}
    assert f"{OPTIMIZER_FOLDER}/{next((target / OPTIMIZER_FOLDER).iterdir()).name}" in inside
    assert flushed == {"step_000004.unfinished", *(f"step_000004.unfinished/{name}" for name in inside)}
    assert seen[renamed + 1] == ("fsync", ".")
    dropped = f"{former.name}.dropped.unfinished"
    assert seen[renamed + 2 :] == [("rename", dropped), ("rmtree", dropped)]
    assert not former.exists()


def test_leftovers_are_no_checkpoints(saved, tiny):
    folder, _ = saved
    leftover = folder / "step_000003.unfinished"
    leftover.mkdir()
    (leftover / "rubbish").touch()
    assert [path.name for path in list_checkpoints(folder)] == ["step_000002"]
    checkpoint = save_checkpoint(folder, *tiny, AdamW(tiny[0].parameters()), {"step": 3}, keep=1)
    assert names(folder) == ["step_000003"]
    assert not (checkpoint / "rubbish").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", STATE_FILE])
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_byte_shows(saved, name, place):
    _, checkpoint = saved
    data = bytearray((checkpoint / name).read_bytes())
    data[place] ^= 1
    (checkpoint / name).write_bytes(data)
    with pytest.raises(ConfigError, match=f"damaged: {name}") as error:
        load_state(checkpoint)
    assert error.value.key == "resume"


@pytest.mark.parametrize("name", ["model.safetensors", STATE_FILE, CHECKSUMS_FILE])
def test_a_missing_or_cut_file_shows(saved, name):
    _, checkpoint = saved
    size = (checkpoint / name).stat().st_size
    os.truncate(checkpoint / name, size // 2)
    with pytest.raises(ConfigError, match="must be a complete checkpoint"):
        load_state(checkpoint)
    (checkpoint / name).unlink()
    with pytest.raises(ConfigError, match=name):
        load_state(checkpoint)


def test_checksums_that_say_nothing_are_none(saved):
    _, checkpoint = saved
    (checkpoint / CHECKSUMS_FILE).write_text("{}")
    with pytest.raises(ConfigError, match=f"has no {STATE_FILE}"):
        load_state(checkpoint)


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]


def test_random_numbers_go_on_where_they_stopped(tiny, tmp_path):
    draws()  # leaves half a pair of normal numbers behind in Python's and numpy's generators
    checkpoint = save_checkpoint(tmp_path, *tiny, AdamW(tiny[0].parameters()), STATE | {"step": 1}, keep=1)
    expected = draws()
    assert draws() != expected
    restore_random_states(load_state(checkpoint)["random"])
    assert draws() == expected


def test_a_checkpoint_of_lens_0_1_is_refused(saved):
    _, checkpoint = saved
    assert load_state(checkpoint)["lens_version"] == __version__
    state = torch.load(checkpoint / STATE_FILE, weights_only=True)
    del state["lens_version"]
    torch.save(state, checkpoint / STATE_FILE)
    sums = json.loads((checkpoint / CHECKSUMS_FILE).read_text())
    (checkpoint / CHECKSUMS_FILE).write_text(json.dumps(sums | {STATE_FILE: checksum(checkpoint / STATE_FILE)}))
    with pytest.raises(ConfigError, match=r"lens 0\.1 wrote it, and can resume it$") as error:
        load_state(checkpoint)
    assert error.value.key == "resume"
    assert str(checkpoint) in str(error.value) and "\n" not in str(error.value)
