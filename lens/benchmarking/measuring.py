"""What every part measures with: a meter of time and memory, turns, the machine's own limit, FLOPs of a model."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from lens.errors import ConfigError
from lens.progress import progress_bar

log = logging.getLogger(__name__)

KIB_PER_GIB = 2**20
PEAK_ATTEMPTS = 5
Row = dict[str, Any]


class Meter:
    """Seconds and memory of the phases of a step.

    Attributes:
        seconds: of each phase.
        above: GiB that each phase took, at its highest, above what was resident when it began.
        peak: GiB resident in this process at the highest point of any phase.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.above: dict[str, float] = {}
        self.peak = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        release_memory()
        before = read_resident_memory("VmRSS")
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the highest resident size, starts anew
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        highest = read_resident_memory("VmHWM")
        self.above[name], self.peak = highest - before, max(self.peak, highest)

    def row(self) -> Row:
        """<phase>_s and <phase>_gib of each phase, and peak_gib."""
        seconds = {f"{name}_s": value for name, value in self.seconds.items()}
        return seconds | {f"{name}_gib": value for name, value in self.above.items()} | {"peak_gib": self.peak}


def read_resident_memory(field: str) -> float:
    """GiB of this process: VmRSS, resident now, or VmHWM, at the highest; nan on other systems than Linux."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / KIB_PER_GIB
    return float("nan")


def release_memory() -> None:
    """Give memory that was freed back to the system, or the next phase would take it unseen."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def alternate(arms: dict[str, Callable[[int], Row]], *, rounds: int, warmup: int) -> list[Row]:
    """Every arm once a round, first by turns, so that whatever else the machine does meets all of them alike.

    Args:
        arms: name -> a function of the round's number, counted from 0 with the warm-up.
        rounds: that are kept.
        warmup: rounds before them, that are not.

    Returns:
        A row for each arm and round, with what the function returned. Where an arm's process ends on the way, the whole
        rounds before.

    Raises:
        ConfigError: an arm's process ended before there was a whole round.
    """
    rows = []
    with progress_bar((warmup + rounds) * len(arms), unit="turn") as bar:
        for number in range(warmup + rounds):
            for name in rotate_names(list(arms), number):
                try:
                    row = arms[name](number)
                except ConfigError as error:
                    if number <= warmup:
                        raise
                    log.error("%s; the %d rounds before are kept", error, number - warmup)
                    return sort_rows([row for row in rows if row["round"] < number - warmup], list(arms))
                bar.update()
                if number >= warmup:
                    rows.append({"arm": name, "round": number - warmup, **row})
    return sort_rows(rows, list(arms))


def sort_rows(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Round after round, and the arms of each in the order of their names here, whoever was first."""
    return sorted(rows, key=lambda row: (row["round"], names.index(row["arm"])))


def rotate_names(names: Sequence[str], number: int) -> list[str]:
    """The names in the order of round ``number``: another one first in each."""
    shift = number % len(names)
    return [*names[shift:], *names[:shift]]


def take_medians(rows: Sequence[Row]) -> pd.DataFrame:
    """The median of every number over the rounds: a row per arm, in the order of their first appearance."""
    return pd.DataFrame(rows).groupby("arm", sort=False).median(numeric_only=True)


def format_paired_ratio(rows: Sequence[Row], value: str, arm: str, baseline: str) -> str:
    """The median over rounds of arm / baseline, with the smallest and the largest."""
    table = pd.DataFrame(rows).pivot(index="round", columns="arm", values=value)
    ratios = table[arm] / table[baseline]
    return f"{ratios.median():.2f} [{ratios.min():.2f}, {ratios.max():.2f}]"


def measure_matrix_peaks(size: int) -> dict[str, float]:
    """FLOP/s of a product of two square matrices of this size, the best of a few, in each data type."""
    peaks = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        seconds = []
        for _ in range(PEAK_ATTEMPTS):
            started = time.perf_counter()
            torch.matmul(a, b)
            seconds.append(time.perf_counter() - started)
        peaks[str(dtype).removeprefix("torch.")] = 2 * size**3 / min(seconds)
    return peaks


def count_training_flops(model: PreTrainedModel, sequences: Iterable[tuple[int, Sequence[int]]]) -> float:
    """FLOPs of one forward and backward pass, the latter twice the former; padding and recomputation do not count.

    Two for each weight and token, four for each channel of attention and pair of tokens that see each other; the head
    is wanted for completion tokens alone.

    Args:
        model: a decoder whose layers are alike.
        sequences: tokens of a prompt, and of each completion that shares the pass over it.
    """
    config = model.config.get_text_config()
    weights = model.base_model.num_parameters(exclude_embeddings=True)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    channels = config.num_hidden_layers * config.num_attention_heads * head_dim
    forward = 0.0
    for prompt, completions in sequences:
        pairs = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in completions)
        forward += 2 * weights * (prompt + sum(completions)) + 4 * channels * pairs
        forward += 2 * config.hidden_size * config.vocab_size * sum(completions)
    return 3 * forward


def describe_machine() -> Row:
    """What else tells whether times can be trusted: niceness, threads, and the load of the last minute."""
    return {"niceness": os.nice(0), "threads": torch.get_num_threads(), "load_1min": os.getloadavg()[0]}


def format_share(flops_per_s: float, peaks: dict[str, float]) -> str:
    """In percent of the machine's bfloat16 peak."""
    return f"{100 * flops_per_s / peaks['bfloat16']:.1f} %"
