"""Checkpoints that several processes write in parts: who can go on from them, and what becomes of the parts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lens.commands.export import export
from lens.errors import ConfigError
from lens.models.hollow import SHARDS_FOLDER
from lens.models.loading import load_model
from lens.runs import parts
from lens.runs.checkpoints import OPTIMIZER_FOLDER, TRAINING_ONLY, load_state, restore_optimizer
from tests.support.command_line import run


@pytest.fixture(scope="module", params=["no", "yes"], ids=["all weights", "adapters"])
def saved(request, tiny_folder, logs, tmp_path_factory):
    """What two processes have saved: their checkpoints, the weights, and what each found."""
    folder = tmp_path_factory.mktemp("parts")
    result = run("tests/support/saving_parts.py", tiny_folder, folder, request.param, folder=logs, processes=2)
    assert result.code == 0, result.stderr
    return SimpleNamespace(
        adapted=request.param == "yes",
        first=folder / "checkpoints" / "step_000001",
        second=folder / "checkpoints" / "step_000002",
        weights=torch.load(folder / "gathered.pt", weights_only=True),
        found=[json.loads((folder / f"found_{rank}.json").read_text()) for rank in (0, 1)],
    )


def test_each_process_writes_its_half_in_files_of_a_limited_size(saved):
    sizes = {}
    for file in (saved.first / SHARDS_FOLDER).iterdir():
        shard = file.name.split("-")[1]
        with safe_open(file, framework="pt") as opened:
            numbers = [opened.get_tensor(name).numel() for name in opened.keys()]  # noqa: SIM118
        sizes[shard] = sizes.get(shard, 0) + sum(numbers)
        assert len(numbers) == 1 or 4 * sum(numbers) <= 20_000
    assert len(list((saved.first / SHARDS_FOLDER).iterdir())) > 4
    total = sum(tensor.numel() for tensor in saved.weights.values())
    assert list(sizes) and sum(sizes.values()) == total
    assert max(sizes.values()) == pytest.approx(total / 2, rel=0.01)
    assert not list(saved.first.glob("*.safetensors"))
    load_state(saved.first)  # all files are as their checksums say


def test_none_gathers_weights_to_save_and_two_go_on_bit_for_bit(saved):
    for found in map(dict, saved.found):
        trained = found.pop("trained")
        assert found.pop("gathered") == (trained if saved.adapted else 0)  # adapters alone
        assert all(value is True for value in found.values())


def test_one_process_goes_on(saved):
    model, _ = load_model(str(saved.first))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved.weights[name])
    if not saved.adapted:
        optimizer = torch.optim.AdamW(model.parameters())
        restore_optimizer(saved.first, model, optimizer, load_state(saved.first)["param_groups"])
        assert all(optimizer.state[p]["exp_avg_sq"].abs().sum() > 0 for p in model.parameters())


def test_whole_files_are_what_transformers_loads(saved):
    assert not (saved.second / SHARDS_FOLDER).exists()
    assert [file.name for file in saved.second.glob("model*")] == ["model.safetensors"]
    weights = load_file(saved.second / "model.safetensors")
    assert weights.keys() == saved.weights.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in saved.weights.items())
    model = AutoModelForCausalLM.from_pretrained(saved.second)
    assert type(model).__name__ == json.loads((saved.second / "config.json").read_text())["architectures"][0]
    assert all(torch.equal(p, saved.weights[name]) for name, p in model.named_parameters())
    load_state(saved.second)


def test_an_export_is_a_folder_of_its_own_in_whole_files(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "BYTES_A_FILE", 50_000)
    before = sorted(str(path) for path in saved.first.rglob("*"))
    target = export(str(saved.first), tmp_path / "new" / "exported")
    assert capsys.readouterr().out == f"{saved.first} as a Hugging Face folder: {target}\n"
    model = AutoModelForCausalLM.from_pretrained(target)
    assert all(torch.equal(p, saved.weights[name]) for name, p in model.named_parameters())
    assert len(list(target.glob("model-*.safetensors"))) > 1
    assert AutoTokenizer.from_pretrained(target).eos_token == "<eos>"
    assert not [name for name in TRAINING_ONLY if (target / name).exists()]
    assert (target / "adapter").exists() == saved.adapted
    assert sorted(str(path) for path in saved.first.rglob("*")) == before
    assert [path.name for path in target.parent.iterdir()] == ["exported"]


def test_an_export_that_cannot_work_is_refused(saved, tmp_path):
    with pytest.raises(ConfigError, match=r"target='.*': must be a folder that does not exist yet"):
        export(str(saved.first), tmp_path)
    with pytest.raises(ConfigError, match=r"target='.*outside of the checkpoint"):
        export(str(saved.first), saved.first / "exported")
    with pytest.raises(ConfigError, match=r"checkpoint='.*': must be a complete checkpoint of a run"):
        export(str(saved.first / OPTIMIZER_FOLDER), tmp_path / "exported")


def test_files_are_filled_in_turn():
    sizes = {"a": 3, "b": 3, "c": 9, "d": 1, "e": 7}
    assert parts.split_into_files(sizes, 8) == {"a": 1, "b": 1, "c": 2, "d": 3, "e": 3}
