"""Gradients of stored rollouts by all processes that torchrun has started: shared_gradient.py FOLDER.

FOLDER/job.pt says what to compute; FOLDER/found.pt is what the first process found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lens.distributed.collectives import gather_tensor, is_first, process_group
from lens.distributed.processes import exit_at_once
from lens.models.loading import DTYPES, load_model
from lens.models.logprobs import ForwardPass
from lens.models.sharding import gather_named_weights, shard_model
from lens.training.experience import Experience
from lens.training.update import compute_gradient
from tests.support.gradients import norms_in_their_own_type
from tests.support.losses import plain_loss


def gathered_in(forward_pass: ForwardPass) -> torch.dtype | None:
    """The data type of matrices that are gathered, as a training run chooses it."""
    return None if forward_pass.autocast is None or forward_pass.torch_compile else DTYPES[forward_pass.autocast]


@contextmanager
def noting_exchanges() -> Iterator[list[tuple[str, str]]]:
    """Meanwhile each exchange of objects, or of weights or gradients by FSDP2, adds its name and its data type."""
    names = [n for n in dir(dist) if n.endswith(("_object", "_object_list", "reduce_scatter_single", "gather_single"))]
    originals, seen = {name: getattr(dist, name) for name in names}, []

    def noting(name: str) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            sent = [value for value in (*arguments, *options.values()) if isinstance(value, Tensor)]
            seen.append((name, str(sent[-1].dtype).removeprefix("torch.") if sent else "objects"))
            return originals[name](*arguments, **options)

        return noted

    for name in names:
        setattr(dist, name, noting(name))
    try:
        yield seen
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    job = torch.load(folder / "job.pt", weights_only=True)
    experience, found = Experience.from_state(job["experience"]), {}
    with process_group():
        for name, (dtype, of_loss, of_pass) in job["cases"].items():
            model = load_model(job["model"], dtype=dtype)[0]
            loss, forward_pass = plain_loss(**of_loss), ForwardPass(**of_pass)
            if dtype == "float64":
                norms_in_their_own_type(model)
            shard_model(model, gathered_in(forward_pass), job.get("degree"))
            with noting_exchanges() as exchanges:
                metrics = compute_gradient(model, experience, loss, forward_pass, compare_groups=True)
            gradient = torch.cat([gather_tensor(parameter.grad).flatten() for parameter in model.parameters()])
            logprobs, entropies = forward_pass.rate_rollouts(model, experience.rollouts)
            weights = {name: tensor.clone() for name, tensor in gather_named_weights(model)}
            held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in model.parameters())
            found[name] = {
                "gradient": gradient,
                "metrics": metrics,
                "logprobs": logprobs,
                "entropies": entropies,
                "weights": weights,
                "held": held,
                "exchanges": sorted(set(exchanges)),
            }
        if is_first():
            torch.save(found, folder / "found.pt")
    exit_at_once()
