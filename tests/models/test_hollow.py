"""Models that are built without weights and read in parts are those that transformers loads whole."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from lens.distributed.room import make_room
from lens.models.architectures import make_random_model
from lens.models.hollow import open_hollow, read_weights
from lens.models.packing import share_prompts
from tests.support.command_line import run

KINDS = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma3": {},  # a text model inside; embeddings scaled by a buffer
    "gpt2": {},  # tied, with transposed weights and names without the prefix
    "gpt_neox": {},
    "bamba": {},  # keeps a state
    "deepseek_v2": {"n_routed_experts": 4},
}


def save_random(kind: str, folder) -> str:
    make_random_model(kind.split()[0], **KINDS.get(kind, {})).save_pretrained(folder)
    return str(folder)


def assert_same(folder: str, dtype: torch.dtype) -> None:
    """Read in parts by one process, which is one part, and loaded by transformers."""
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    share_prompts(whole)
    model = open_hollow(folder, dtype, None)
    assert all(parameter.is_meta for parameter in model.parameters())
    make_room(model, "cpu")
    read_weights(model)
    ours, theirs = dict(model.named_parameters()), dict(whole.named_parameters())
    assert ours.keys() == theirs.keys()  # tied ones once
    for name, parameter in theirs.items():
        assert ours[name].dtype == parameter.dtype
        assert torch.equal(ours[name], parameter), name
    buffers = dict(model.named_buffers())
    for name, buffer in whole.named_buffers():
        assert buffers[name].dtype == buffer.dtype
        assert torch.equal(buffers[name], buffer), name
    assert model.config.to_dict() == whole.config.to_dict()
    assert model.config._attn_implementation == whole.config._attn_implementation
    assert model.generation_config.to_dict() == whole.generation_config.to_dict()
    assert not model.training
    with torch.no_grad():
        ids = torch.arange(3, 13)[None]
        assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "deepseek_v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_buffers_are_those_that_transformers_loads(tmp_path, kind, dtype):
    assert_same(save_random(kind, tmp_path), dtype)


def test_weights_in_bfloat16_in_many_files_beside_others_become_float32(tmp_path):
    model = make_random_model("llama").bfloat16()
    model.generation_config = GenerationConfig(eos_token_id=[2, 7], pad_token_id=0)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    save_file({"model.norm.weight": torch.zeros(64)}, tmp_path / "consolidated.safetensors")
    assert_same(str(tmp_path), torch.float32)
    assert open_hollow(str(tmp_path), torch.float32, None).generation_config.eos_token_id == [2, 7]


FAULTS = {
    "experts that transformers joins": "transformers makes model.layers.1.mlp.experts.",
    "a weight is missing": "its files have 0 weights for model.norm.weight",
    "a weight is shorter": "model.norm.weight has another shape than the model's",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_cannot_be_read_in_parts_is_loaded_whole_with_a_line(tmp_path, caplog, fault):
    folder = save_random("deepseek_v2" if "experts" in fault else "llama", tmp_path)
    if "experts" not in fault:
        weights = load_file(tmp_path / "model.safetensors")
        norm = weights.pop("model.norm.weight")
        weights |= {"model.norm.weight": norm[:32]} if "shorter" in fault else {}
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert open_hollow(folder, torch.float32, None) is None
    (line,) = caplog.messages
    assert line.startswith(f"Each process loads all of {folder} before it keeps its part: {FAULTS[fault]}")


@pytest.fixture(scope="module")
def in_two(logs, tmp_path_factory) -> list[dict]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("llama", "llama tied", "gemma3", "gpt2"):
        save_random(kind, folder / kind)
    shutil.copytree(folder / "llama", folder / "llama adapted")
    shutil.copytree(folder / "llama tied", folder / "llama tied adapted")
    result = run("tests/support/hollow_loading.py", folder, folder=logs, processes=2)
    assert result.code == 0, result.stderr
    return [json.loads((folder / f"found_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["llama", "llama tied", "gemma3", "gpt2", "llama adapted", "llama tied adapted"])
def test_two_processes_hold_a_half_each_of_what_one_would_load(in_two, kind):
    for found in (part[kind] for part in in_two):
        assert found["empty"]
        assert found["names"]
        assert found["different"] == found["other buffers"] == []
        assert found["share held"] == pytest.approx(0.5, abs=0.01)
        assert found["logits differ by"] < 1e-5
        assert found["engine's differ by"] < 1e-5
        if "adapted" in kind:
            assert found["other adapters"] == []
            assert found["trained"] == [".lora_"]
