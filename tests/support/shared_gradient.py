"""Gradients of stored rollouts by all processes that torchrun has started: shared_gradient.py FOLDER.

FOLDER/job.pt says what to compute; FOLDER/found.pt is what the first process found.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from lens.distributed.collectives import gather_tensor, is_first, process_group
from lens.distributed.processes import exit_at_once
from lens.models.loading import load_model
from lens.models.logprobs import ForwardPass
from lens.models.sharding import gather_named_weights, shard_model
from lens.training.experience import Experience
from lens.training.update import compute_gradient
from tests.support.gradients import norms_in_their_own_type
from tests.support.losses import plain_loss

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
            shard_model(model)
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
            }
        if is_first():
            torch.save(found, folder / "found.pt")
    exit_at_once()
