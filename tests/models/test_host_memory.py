"""What a host's memory cannot hold is refused before it is loaded, with the numbers."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from lens.commands.host_needs import check_host_needs, count_host_needs
from lens.errors import ConfigError
from lens.models import host_memory
from lens.models.architectures import make_random_model
from lens.models.hollow import open_hollow
from lens.models.host_memory import GIB, check_host_memory, count_stored, read_available_memory
from lens.models.loading import load_model, load_weights


@pytest.fixture
def tight(monkeypatch, tmp_path):
    """A host on which a container may take a thousand bytes."""
    (tmp_path / "memory.max").write_text("1000\n")
    monkeypatch.setattr(host_memory, "CGROUP_LIMIT", tmp_path / "memory.max")


def test_available_is_what_the_kernel_says_but_for_the_containers_limit(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:  7 kB\n")
    monkeypatch.setattr(host_memory, "MEMINFO", tmp_path / "meminfo")
    for limit, available in (("max", 7 * 1024), ("5000", 5000), ("9000", 7 * 1024)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        monkeypatch.setattr(host_memory, "CGROUP_LIMIT", tmp_path / "memory.max")
        assert read_available_memory() == available
    monkeypatch.setattr(host_memory, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(host_memory, "CGROUP_LIMIT", tmp_path / "none")
    assert read_available_memory() == float("inf")


def test_the_line_has_the_numbers_of_all_processes_of_the_host(monkeypatch):
    monkeypatch.setattr(host_memory, "read_available_memory", lambda: 16 * GIB)
    needs = {"weights": 3 * GIB, "nothing": 0, "the engine's copy": 4.5 * GIB}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_host_memory("a/model", needs)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ConfigError) as caught:
        check_host_memory("a/model", needs)
    assert str(caught.value) == (
        "model.name_or_path='a/model': must fit into this host's memory: 4 processes need 30.0 GiB (each: weights 3.0, "
        "the engine's copy 4.5), and 16.0 GiB are available"
    )


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(tiny_folder, tight):
    with pytest.raises(ConfigError, match=r"^checkpoint='.*': must fit into this host's memory: it needs \d\.\d GiB"):
        load_model(str(tiny_folder), key="checkpoint")


def test_numbers_are_counted_in_the_headers(tmp_path):
    model = make_random_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    files = [str(file) for file in tmp_path.glob("*.safetensors")]
    assert count_stored(files) == model.num_parameters()
    with safe_open(files[0], framework="pt") as opened:
        assert 0 < count_stored(files[:1]) == sum(opened.get_tensor(name).numel() for name in opened.keys())  # noqa: SIM118


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_needs_its_part_of_weights_gradients_and_moments_and_the_embedded_engines_copy(tmp_path, dtype, tight):
    make_random_model("llama").save_pretrained(tmp_path)
    model = open_hollow(str(tmp_path), dtype, None)
    whole, numbers = model.num_parameters() * dtype.itemsize, model.num_parameters()
    config = OmegaConf.create(
        {"trainer": {"memory": {"data_parallel_shard_degree": None}}, "model": {"lora": None}, "sampler": {}}
    )
    masters = 0 if dtype == torch.float32 else 4 * numbers
    assert count_host_needs(config, model, True, 8) == {
        "its part of the weights": whole / 8,
        "of the reference model": whole / 8,
        "of gradients and optimizer state": (12 * numbers + masters) / 8,
        "the engine's copy": whole,
        "the largest tensor": 97 * 64 * dtype.itemsize,
    }
    config.trainer.memory.data_parallel_shard_degree, config.model.lora, config.sampler.dtype = 2, {"r": 4}, "bfloat16"
    needs = count_host_needs(config, model, False, 8)
    assert [value for value in needs.values() if value] == [whole / 2, 97 * 64 * dtype.itemsize]
    with pytest.raises(ConfigError, match=r"must fit into this host's memory: it needs 0\.0 GiB \(each: its part"):
        check_host_needs(config, model, None)


def test_what_is_loaded_already_is_not_refused(tmp_path, tight, monkeypatch):
    make_random_model("llama").save_pretrained(tmp_path)
    monkeypatch.setattr("lens.models.loading.check_host_memory", lambda *_: None)
    check_host_needs(OmegaConf.create(), load_weights(str(tmp_path), torch.float32, None), None)
