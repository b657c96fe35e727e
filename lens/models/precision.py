"""Chooses the data type of matrix products by what this machine multiplies, and warns where bfloat16 is slow."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lens.distributed.collectives import gather_objects

log = logging.getLogger(__name__)

AUTO = "auto"
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")  # by torch's names; each multiplies bfloat16
CRAWLING = 2  # times the seconds of float32 from which on bfloat16 is worth a warning
KEYS = ("trainer.memory.autocast", "model.dtype", "sampler.dtype")


def find_bfloat16_unit() -> str | None:
    """Return what multiplies bfloat16 here: the GPU's name, or the processor's instructions. None: nothing does.

    torch leaves these products on a CPU to oneDNN, which knows too whether ONEDNN_MAX_CPU_ISA forbids the instructions.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name() if torch.cuda.is_bf16_supported(including_emulation=False) else None
    known = torch.cpu.get_capabilities()
    found = [name for name in INSTRUCTIONS if known.get(name)]
    return found[0] if found and torch.ops.mkldnn._is_mkldnn_bf16_supported() else None


def resolve_autocast(autocast: str | None, dtype: str, multiplies_bfloat16: bool) -> str | None:
    """Return the data type of matrix products that trainer.memory.autocast stands for; None is that of the weights.

    Args:
        autocast: the key's value; ``auto`` is bfloat16 where it is multiplied and the weights are in float32.
        dtype: data type of the weights.
        multiplies_bfloat16: whether the machine has instructions for it.
    """
    if autocast != AUTO:
        return autocast
    return "bfloat16" if multiplies_bfloat16 and dtype == "float32" else None


def settle_precision(config: DictConfig, stored: dict[str, Any] | None = None) -> None:
    """Replace ``auto`` in a config, in place and for all processes, and say in a line what it is and why.

    Then warn if the config asks for bfloat16 on a machine where that is slow.

    Args:
        config: the composed config. Only ``trainer.memory.autocast`` and ``model.dtype`` may be ``auto``.
        stored: the config of the run that goes on here. Its choice stays, whatever this machine multiplies.
    """
    units = gather_objects(find_bfloat16_unit())
    unit = units[0] if all(units) else None
    because = f"{unit} multiplies bfloat16" if unit else "nothing here multiplies bfloat16"
    if config.model.dtype == AUTO:
        config.model.dtype = "bfloat16" if unit else "float32"
        log.info("model.dtype=auto: %s, as %s", config.model.dtype, because)
    if OmegaConf.select(config, KEYS[0]) == AUTO:
        chosen = resolve_autocast(AUTO, config.model.dtype, unit is not None)
        memory = config.trainer.memory
        if stored is None:
            memory.autocast = chosen
            log.info("%s=auto: %s, as %s", KEYS[0], name_autocast(chosen), because)
        else:
            memory.autocast = stored["trainer"]["memory"]["autocast"]
            level = logging.INFO if memory.autocast == chosen else logging.WARNING
            would = "" if memory.autocast == chosen else f"; a new run would take {name_autocast(chosen)}, as {because}"
            log.log(level, "%s=auto: %s, as the run was begun%s", KEYS[0], name_autocast(memory.autocast), would)
    if unit is None:
        warn_of_bfloat16(config)


def name_autocast(autocast: str | None) -> str:
    """Return a value of trainer.memory.autocast in words."""
    return autocast or "null (the data type of the weights)"


def warn_of_bfloat16(config: DictConfig) -> None:
    """Warn if the config asks for bfloat16 and products in it take at least CRAWLING times those in float32."""
    asked = [key for key in KEYS if OmegaConf.select(config, key) == "bfloat16"]
    if asked and (ratio := measure_slowdown()) >= CRAWLING:
        log.warning(
            "%s: a matrix product in bfloat16 takes %.0f times as long as in float32 on this machine (measured). "
            "trainer.memory.autocast=auto and the other data types as float32 are faster here",
            ", ".join(f"{key}=bfloat16" for key in asked),
            ratio,
        )


def measure_slowdown() -> float:
    """Return how many times as long a product of two matrices takes in bfloat16 as in float32.

    On a CPU it takes a tenth of a second on one thread, so that what else the machine does weighs little.
    """
    on_gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
    size = 2048 if on_gpu else 256
    torch.set_num_threads(1)
    try:
        fastest = {dtype: time_product(size, dtype, "cuda" if on_gpu else "cpu") for dtype in ("float32", "bfloat16")}
    finally:
        torch.set_num_threads(threads)
    return fastest["bfloat16"] / fastest["float32"]


def time_product(size: int, dtype: str, device: str = "cpu", *, attempts: int = 3, limit_s: float = 1.0) -> float:
    """Return the seconds of a product of two square matrices, the best of a few attempts.

    Args:
        size: rows and columns.
        dtype: name of the data type.
        device: cpu or cuda.
        attempts: how often to try, at most.
        limit_s: no further attempt once this many seconds are over.
    """
    a = b = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))  # draws no random number
    seconds: list[float] = []
    while len(seconds) < attempts and sum(seconds) < limit_s:
        started = time.perf_counter()
        torch.matmul(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
