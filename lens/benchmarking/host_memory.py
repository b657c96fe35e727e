"""Measures the host memory that a process takes to load its part of a model and to save a checkpoint of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from omegaconf import DictConfig
from transformers import LlamaConfig, LlamaForCausalLM

from lens.benchmarking.measuring import alternate, take_medians
from lens.benchmarking.meter import GIB, Row
from lens.errors import ConfigError
from lens.models.tiny import make_tokenizer

HEAD_WIDTH = 64
FACTOR = 1.3  # of a process's part and the largest layer: what a process may take


def measure_host_memory(config: DictConfig) -> list[Row]:
    """Measure each of ``memory.processes`` on a Llama with random weights in float32, saved as safetensors.

    The processes load the model and save one checkpoint. What counts is a process's private memory above that at the
    start: pages of files that are mapped belong to the system's cache.

    Raises:
        ConfigError: a number of processes is none, or a process failed.
    """
    numbers = list(config.memory.processes)
    if not numbers or any(type(number) is not int or number < 1 for number in numbers):
        raise ConfigError("memory.processes", numbers, "must be a list of integers >= 1")
    with TemporaryDirectory(dir=config.memory.folder) as place:
        sizes = make_random_llama(config, Path(place) / "model")

        def measure(number: int) -> Row:
            target = Path(place) / "saved"
            peaks = run_processes(number, Path(place) / "model", target)
            shutil.rmtree(target)
            bar = FACTOR * (sizes["whole_gib"] / number + sizes["layer_gib"])
            return {"processes": number, **sizes, "peaks_gib": peaks, "peak_gib": max(peaks), "bar_gib": bar}

        arms = {f"{number} processes": lambda _, number=number: measure(number) for number in dict.fromkeys(numbers)}
        return alternate(arms, rounds=config.rounds, warmup=0)


def make_random_llama(config: DictConfig, folder: Path) -> Row:
    """Save a Llama of the sizes in the config's memory section, in files of at most 500 MB, with a tokenizer.

    Returns:
        whole_gib and layer_gib: the size of all weights, and that of the largest of layers, embeddings and head.
    """
    s = config.memory
    torch.manual_seed(config.seed)
    architecture = LlamaConfig(
        vocab_size=s.vocab_size,
        hidden_size=s.hidden_size,
        intermediate_size=round(s.hidden_size * 8 / 3),
        num_hidden_layers=s.num_layers,
        num_attention_heads=max(1, s.hidden_size // HEAD_WIDTH),
    )
    model = LlamaForCausalLM(architecture)
    parts = [*model.model.layers, model.get_input_embeddings(), model.get_output_embeddings()]
    sizes = [sum(p.nbytes for p in part.parameters()) for part in parts]
    model.save_pretrained(folder, max_shard_size="500MB")
    make_tokenizer().save_pretrained(folder)
    return {"whole_gib": sum(p.nbytes for p in model.parameters()) / GIB, "layer_gib": max(sizes) / GIB}


def run_processes(number: int, model: Path, target: Path) -> list[float]:
    """Return the highest private memory of each process above that at its start, in GiB.

    Raises:
        ConfigError: a process failed; the message has its last line.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    command = [*torchrun, "-m", "lens.benchmarking.loading_process", str(model), str(target)]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode != 0:
        said = (ended.stderr.strip() or "no message").splitlines()[-1]
        raise ConfigError("memory.processes", number, f"must be processes that end well ({said})")
    return [json.loads((target / f"process_{rank}.json").read_text()) for rank in range(number)]


def tabulate_host_memory(rows: Sequence[Row], peaks: dict[str, float]) -> pd.DataFrame:
    """Return a table of the medians over rounds for each number of processes, beside what is allowed."""
    return pd.DataFrame(
        [
            {
                "processes": f"{values.processes:.0f}",
                "whole model": f"{values.whole_gib:.3f}",
                "largest layer": f"{values.layer_gib:.3f}",
                "a process's peak": f"{values.peak_gib:.3f}",
                f"{FACTOR} x (whole / processes + layer)": f"{values.bar_gib:.3f}",
                "holds": "yes" if values.peak_gib <= values.bar_gib else "no",
            }
            for _, values in take_medians(rows).iterrows()
        ]
    )
