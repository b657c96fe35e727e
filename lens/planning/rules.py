"""The values that the keys of a plan may have, beside those of a run."""

from __future__ import annotations

from lens.config.checks import POSITIVE, at_least, number

SHARE = number(lambda v: 0 < v <= 1, "a share in (0, 1]")
RULES = {
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
}
