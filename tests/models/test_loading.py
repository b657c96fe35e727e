"""How a model is loaded, and models that cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lens.errors import ConfigError
from lens.models.loading import load_model
from lens.sampling.rollouts import end_token_ids


def test_an_attention_that_is_not_here_is_refused(tiny_folder):
    with pytest.raises(ConfigError, match=r"model\.attention='flash_attention_2': must be an attention that runs here"):
        load_model(str(tiny_folder), attention="flash_attention_2")


def test_a_loaded_model_is_in_evaluation_mode_and_in_the_type_asked_for(tiny_folder):
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float64", torch.float64)):
        model, tokenizer = load_model(str(tiny_folder), dtype=name)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert not model.training
        assert tokenizer.eos_token == "<eos>"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to do damage to."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def refusal(name: str, **choices: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_model(name, **choices)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    assert refusal(str(folder)).endswith("a folder in Hugging Face format (it has no config.json)")


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()  # not asked for: pickles run code
    assert refusal(str(folder)).endswith("a folder with weights (it has no *.safetensors)")


def test_broken_weights_are_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.name_or_path" in refusal(str(folder))


def test_a_folder_without_tokenizer_is_refused(folder):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    assert "model.name_or_path" in refusal(str(folder))


def test_a_name_that_nobody_knows_is_refused():
    assert "model.name_or_path='no/such-model'" in refusal("no/such-model")


def test_an_unknown_dtype_is_refused_with_the_known_ones(folder):
    assert refusal(str(folder), dtype="int8") == "model.dtype='int8': must be one of float32, bfloat16, float64"


def test_a_model_that_cannot_end_an_answer_is_refused(folder):
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / file).read_text())
        settings = {key: value for key, value in settings.items() if not key.startswith("eos_token")}
        (folder / file).write_text(json.dumps(settings))
    assert refusal(str(folder)).endswith("a tokenizer with an end-of-sequence token")


def test_the_generation_config_may_name_the_end_token_alone(folder):
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["eos_token"]
    file.write_text(json.dumps(settings))
    model, tokenizer = load_model(str(folder))
    assert tokenizer.eos_token_id is None
    assert model.generation_config.eos_token_id is not None


def test_a_text_to_stop_at_is_one_more_end_token_and_is_saved_with_the_model(folder, tmp_path):
    model, tokenizer = load_model(str(folder), stop=[",", "}"])
    ends = tokenizer.convert_tokens_to_ids([",", "}", "<eos>"])
    assert end_token_ids(model, tokenizer) == sorted(ends)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert end_token_ids(*load_model(str(tmp_path / "saved"))) == sorted(ends)


def test_a_text_to_stop_at_that_is_two_tokens_is_refused(folder):
    refused = r"model.stop='1 2': must be one token of the model's, and is 2"
    assert refusal(str(folder), stop=["1 2"]) == refused
