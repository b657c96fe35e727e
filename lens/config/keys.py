"""Says which config keys decide a run's results, and hashes and compares configs by them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

# These change no result: runs that differ in nothing else are the same run.
WITHOUT_EFFECT = ("check_golds", "jobs", "outputs", "profile", "resume", "tracking")

# Runs of one arm may differ in these.
NOT_COMPARED = ("seed", *WITHOUT_EFFECT)

# A run may resume with other values of these: they change what is written and when, not what is computed.
FREE_TO_DIFFER = (
    *WITHOUT_EFFECT,
    "trainer.checkpoints",
    "trainer.rollouts.rollouts_every",
    "trainer.non_finite",
    "trainer.max_entropy",
    "grader.num_workers",
)

# A run may resume with other values of these too, with a warning: they change the order of additions, so the rounding.
ROUNDING = (
    "model.attention",
    "trainer.memory.max_tokens_per_microbatch",
    "trainer.memory.logits_chunk_size",
    "trainer.memory.gradient_checkpointing",
    "trainer.memory.torch_compile",
    "trainer.memory.num_threads",
    "trainer.memory.data_parallel_shard_degree",
    "sampler.max_num_seqs",
)

# Learning-rate schedules that do not depend on trainer.max_steps, so that a run can be made longer.
LENGTHLESS_SCHEDULES = ("constant", "constant_with_warmup")

# Values of the key ``resume`` that are not a path.
RESUME_KEYWORDS = ("auto", "never", "must")

# Sections whose names tables leave out, as num_generations=16 is clear without.
SECTIONS = ("trainer.rollouts", "trainer.memory", "trainer.checkpoints", "trainer", "loss", "optimizer", "objective")


def hash_config(*, _root_: DictConfig) -> str:
    """Return a short hash of all keys that decide a run's results; Hydra's own settings are not part of it."""
    decisive = [key for key in _root_ if key not in ("hydra", *WITHOUT_EFFECT)]
    values = {key: _root_[key] for key in decisive}  # still in the whole config: some refer to keys left out
    values = {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in values.items()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def is_listed(key: str, names: tuple[str, ...]) -> bool:
    """Return whether a dotted key is one of the names, or lies in a section that is one of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as dotted keys and their values."""
    found = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        found |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def find_differing_keys(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys in which two configs differ, without those in NOT_COMPARED."""
    found = []
    for key in sorted(set(a) | set(b)):
        if not prefix and key in NOT_COMPARED:
            continue
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            found += find_differing_keys(x, y, f"{prefix}{key}.")
        elif x != y:
            found.append(f"{prefix}{key}")
    return found


def shorten_key(key: str) -> str:
    """Return a dotted key without its section: optimizer.learning_rate -> learning_rate."""
    section = next((section for section in SECTIONS if key.startswith(f"{section}.")), None)
    return key if section is None else key.removeprefix(f"{section}.")
