"""Tools that every part measures with: the order of turns, medians and ratios, peak speeds, FLOP counts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence

import pandas as pd
import torch
from transformers import PreTrainedModel

from lens.benchmarking.meter import Row
from lens.errors import ConfigError
from lens.models.flops import Flops
from lens.models.precision import time_product
from lens.progress import progress_bar

log = logging.getLogger(__name__)

PEAK_ATTEMPTS = 5
SMALLEST = 256  # rows and columns of the first product
LONGEST_S = 1.0  # a product that would take longer than this is left out
UPDATE_FLOPS = "update_flops_"  # with a data type behind it: the column of an update's FLOPs in that type


def alternate(arms: dict[str, Callable[[int], Row]], *, rounds: int, warmup: int) -> list[Row]:
    """Run every arm once per round, starting each round with another arm.

    Other load on the machine then slows all arms alike.

    Args:
        arms: name -> a function that takes the number of the round, counted from 0 at the first warm-up round.
        rounds: how many rounds to keep.
        warmup: how many rounds to run before them and drop.

    Returns:
        A row for each arm and round, with what the function returned. If an arm's process ends early, only the rows of
        the complete rounds before it.

    Raises:
        ConfigError: an arm's process ended before one round was complete.
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
                    log.error("%s; keeping the %d rounds before it", error, number - warmup)
                    return sort_rows([row for row in rows if row["round"] < number - warmup], list(arms))
                bar.update()
                if number >= warmup:
                    rows.append({"arm": name, "round": number - warmup, **row})
    return sort_rows(rows, list(arms))


def sort_rows(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Sort rows by round, and inside a round by the order of ``names``, whichever arm ran first."""
    return sorted(rows, key=lambda row: (row["round"], names.index(row["arm"])))


def rotate_names(names: Sequence[str], number: int) -> list[str]:
    """Return the names in the order of round ``number``; each round starts with another name."""
    shift = number % len(names)
    return [*names[shift:], *names[:shift]]


def take_medians(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the median of every number over the rounds: a row per arm, in the order in which arms first appear."""
    return pd.DataFrame(rows).groupby("arm", sort=False).median(numeric_only=True)


def format_paired_ratio(rows: Sequence[Row], value: str, arm: str, baseline: str) -> str:
    """Format the median over rounds of arm / baseline, with the smallest and the largest ratio in brackets."""
    table = pd.DataFrame(rows).pivot(index="round", columns="arm", values=value)
    ratios = table[arm] / table[baseline]
    return f"{ratios.median():.2f} [{ratios.min():.2f}, {ratios.max():.2f}]"


def measure_matrix_peaks(largest: int, dtypes: Iterable[str]) -> dict[str, float]:
    """Return the highest FLOP/s of a product of two square matrices, by data type. It takes some seconds a type.

    The GPU multiplies them, where there is one. Sizes double up to ``largest``, as long as the next product will take
    less than LONGEST_S.
    """
    peaks: dict[str, float] = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with progress_bar(None, unit="product", desc="Measuring the peak of this machine") as bar:
        for dtype in dtypes:
            size, peaks[dtype] = min(SMALLEST, largest), 0.0
            while size <= largest and (peaks[dtype] == 0 or 2 * size**3 / peaks[dtype] < LONGEST_S):
                bar.set_postfix_str(f"{dtype}, {size} x {size}")
                seconds = time_product(size, dtype, device, attempts=PEAK_ATTEMPTS, limit_s=LONGEST_S)
                peaks[dtype] = max(peaks[dtype], 2 * size**3 / seconds)
                size *= 2
                bar.update()
    return peaks


def count_training_flops(
    model: PreTrainedModel, sequences: Iterable[tuple[int, Sequence[int]]], *, body: str, head: str
) -> Row:
    """Return the FLOPs of one forward and backward pass; padding and recomputation do not count.

    The forward pass takes 2 FLOPs for each weight and token, and 4 for each attention channel and pair of tokens that
    see each other. Only completion tokens need the head. The backward pass takes twice as many as the forward pass, but
    only as many for a frozen weight, which has no gradient.

    Args:
        model: a decoder whose layers are alike.
        sequences: for each pass, the tokens of the prompt and of each completion that shares it.
        body, head: data types of the matrix products in the layers and in the head.

    Returns:
        update_flops, and how many of them are in which data type.
    """
    flops, of_type = Flops.of(model), dict.fromkeys((body, head), 0.0)
    trained = model.base_model.num_parameters(only_trainable=True, exclude_embeddings=True)
    a_token = 2 * flops.body + 2 * trained  # forward, and the gradients of activations and of weights
    of_head = (2 + model.get_output_embeddings().weight.requires_grad) * flops.head
    for prompt, completions in sequences:
        pairs = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in completions)
        of_type[body] += a_token * (prompt + sum(completions)) + 3 * flops.attention * pairs
        of_type[head] += of_head * sum(completions)
    return {"update_flops": sum(of_type.values())} | {f"{UPDATE_FLOPS}{name}": count for name, count in of_type.items()}


def describe_machine() -> Row:
    """Return what can distort the times: niceness, number of threads, and the load of the last minute."""
    return {"niceness": os.nice(0), "threads": torch.get_num_threads(), "load_1min": os.getloadavg()[0]}


def format_share(values: pd.Series, peaks: dict[str, float]) -> str:
    """Format the speed of an update in percent of the machine's peak in the data types that it ran in.

    It is the time that its FLOPs take at the peak of their types, over the time that the update took.

    Args:
        values: a row's numbers: update_s and the counts of `count_training_flops`.
        peaks: FLOP/s by data type.
    """
    return f"{100 * seconds_at_peak(values, peaks) / values.update_s:.1f} %"


def seconds_at_peak(values: pd.Series, peaks: dict[str, float]) -> float:
    """Return the seconds that an update's FLOPs take at the peak of their types; see `format_share`."""
    return sum(values.get(f"{UPDATE_FLOPS}{dtype}", 0.0) / peak for dtype, peak in peaks.items())
