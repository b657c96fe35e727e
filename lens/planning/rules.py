"""The values that the keys of a plan may have, beside those of a run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import ListConfig

from lens.config.checks import NOT_NEGATIVE, POSITIVE, at_least, number

SHARE = number(lambda v: 0 < v <= 1, "a share in (0, 1]")


def are_numbers_of_gpus(value: ListConfig) -> bool:
    """Return whether a list holds rising numbers of GPUs, all multiples of the first."""
    if not value or not all(type(number) is int and number >= 1 for number in value):
        return False
    return list(value) == sorted(set(value)) and all(number % value[0] == 0 for number in value)


RULES = {
    "simulate": (ListConfig, are_numbers_of_gpus, "a list of rising multiples of its first number, like [8,64,512]"),
    "measured": (str, lambda v: Path(v).is_dir(), "the folder of a finished run"),
    "num_gpus": at_least(1),
    "gpu_memory_gib": POSITIVE,
    "usable_memory": SHARE,
    "gpu_tflops": POSITIVE,
    "gpu_bandwidth_gbs": POSITIVE,
    "gpus_per_node": at_least(1),
    **dict.fromkeys(("node_link_gbs", "link_gbs"), POSITIVE),
    "training_utilization": SHARE,
    "generation_utilization": SHARE,
    "mean_prompt_length": at_least(1),
    "mean_completion_length": at_least(1),
    "trained_share": SHARE,
    "kept_share": SHARE,
    "length_spread": NOT_NEGATIVE,
    **dict.fromkeys(("grading_ms", "handling_ms"), NOT_NEGATIVE),
    "disk_gbs": POSITIVE,
    "max_staleness": at_least(1),
}
