"""Shards a model's weights over the processes with FSDP2, reads them, and gathers them to compute, sync or save."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from lens.distributed.collectives import gather_tensor, is_first, world_size
from lens.distributed.room import make_room
from lens.models.head import widened_dtype
from lens.models.hollow import is_hollow, read_weights
from lens.models.lora import has_adapters, iterate_plain_weights


def shard_model(model: PreTrainedModel, gathered: torch.dtype | None = None, degree: int | None = None) -> None:
    """Shard a model's weights over the processes, in place: layer by layer, then the rest (embeddings, head) together.

    A model without weights then reads this process's part of them. A layer's weights are gathered while it computes.
    Use `call_with_weights` to run the model. Gradients are summed over the processes in float32 or wider. With one
    process this does nothing.

    Args:
        model: the model.
        gathered: data type in which matrices of layers are gathered. The model then runs under autocast to it alone,
            which would round them to it anyway. None: that of the weights.
        degree: how many neighbouring processes share a copy of the weights; others have replicas. It divides the number
            of processes. None: all share one copy.
    """
    if world_size() == 1:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (world_size(),) if degree in (None, world_size()) else (world_size() // degree, degree)
    mesh = init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    model.gathered = gathered
    policy = MixedPrecisionPolicy(reduce_dtype=widened_dtype(next(model.parameters())), cast_forward_inputs=False)
    for module in model.modules():
        if type(module).__name__ in (model._no_split_modules or ()):
            shard_layer(module, mesh, policy, gathered)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.call = MethodType(lambda model, function, *arguments: function(model, *arguments), model)
    register_fsdp_forward_method(model, "call")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Sum gradients, do not average them: the loss already has the denominator of the whole batch.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    if is_hollow(model):
        make_room(model, device)
        read_weights(model)


def shard_layer(layer: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy, gathered: torch.dtype | None) -> None:
    """Shard a layer, whose matrices are gathered in a data type of their own.

    Autocast leaves the weights of norms as they are, so these are gathered apart, in their own type. So is a layer with
    other vectors, of which it is not known what is computed with them.
    """
    leaves = [m for m in layer.modules() if not list(m.children()) and list(m.parameters())]
    vectors = [m for m in leaves if all(p.ndim < 2 for p in m.parameters())]
    in_leaves = {p for m in leaves for p in m.parameters()}
    if gathered is None or any(p.ndim < 2 for p in layer.parameters() if p not in in_leaves):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
        return
    if vectors:
        fully_shard(vectors, mesh=mesh, mp_policy=policy)
    fully_shard(layer, mesh=mesh, mp_policy=replace(policy, param_dtype=gathered))


def call_with_weights(model: PreTrainedModel, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function(model, *arguments)`` with the weights gathered that it needs, and return its result."""
    if not isinstance(model, FSDPModule):
        return function(model, *arguments)
    result = model.call(function, *arguments)
    if not torch.is_grad_enabled():
        model.reshard()  # after a backward pass FSDP does this itself
    return result


def gather_named_weights(model: nn.Module, *, remove_duplicate: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield names and whole weights, gathered one after the other, with adapters merged in.

    Args:
        model: sharded or not, with or without adapters.
        remove_duplicate: yield tied weights once, not under each of their names.
    """
    for name, weight in iterate_plain_weights(model, remove_duplicate=remove_duplicate):
        yield name, gather_tensor(weight)


def gather_weights(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Gather the weights on the first process, by name, as `gather_named_weights` does.

    Returns None for a single process without adapters, which can save the model as it is.
    """
    if world_size() == 1 and not has_adapters(model):
        return None
    weights = {}
    for name, tensor in gather_named_weights(model, remove_duplicate=True):
        if is_first():
            weights[name] = tensor.cpu()
    return weights
