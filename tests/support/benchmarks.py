"""A benchmark of a second or two."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from lens.files import CONFIGS

ROUNDS = 2
SMALL = [
    "model=tiny",
    "model.dtype=float32",
    "dataset=arithmetic",
    "dataset.arithmetic.size=20",
    "trainer.num_prompts_per_step=2",
    "trainer.rollouts.num_generations=4",
    "trainer.rollouts.max_completion_length=12",
    "trainer.memory.num_threads=1",
    "grader.num_workers=1",
    "engines.vllm.kv_cache_space=0.25",
    "scaling.num_generations=[2]",
    "scaling.max_completion_length=[6]",
    "scaling.num_layers=[1,2]",
    "scaling.vocab_size=[32,1000000]",
    "memory.processes=[1,2]",
    "memory.num_layers=4",
    "memory.hidden_size=512",
    "memory.vocab_size=8000",
    "naive.sequences=3",
    "made_up.prompt_length=5",
    "peak_size=64",
    f"rounds={ROUNDS}",
]


def composed(folder: Path, *overrides: str) -> DictConfig:
    """The benchmark's config for the model in a folder, in sizes of a second or two."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("benchmark", [*SMALL, f"model.name_or_path={folder}", *overrides])
