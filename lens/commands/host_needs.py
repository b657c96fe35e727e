"""Counts the host memory that a training run takes in each process, before weights are read."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from transformers import PreTrainedModel

from lens.distributed.collectives import world_size
from lens.models.head import widened_dtype
from lens.models.hollow import is_hollow
from lens.models.host_memory import check_host_memory
from lens.models.master_weights import needs_master


def check_host_needs(config: DictConfig, model: PreTrainedModel, reference: PreTrainedModel | None) -> None:
    """Refuse a run for whose models this host has too little memory. Models that are loaded already are not checked.

    Args:
        config: the composed config of a run.
        model, reference: the models, without weights yet.

    Raises:
        ConfigError: this host has too little memory; the message has the numbers.
    """
    if is_hollow(model):
        check_host_memory(model.name_or_path, count_host_needs(config, model, reference is not None, world_size()))


def count_host_needs(config: DictConfig, model: PreTrainedModel, reference: bool, processes: int) -> dict[str, float]:
    """Return the bytes that each process takes on its host. With a GPU that is the tensor that is being read.

    Args:
        config: the composed config of a run.
        model: the model to train, without weights yet.
        reference: whether there is a reference model of the same size.
        processes: all processes of the run.
    """
    weights = list(model.parameters())
    reading = {"the largest tensor": float(max(weight.nbytes for weight in weights))}
    if torch.cuda.is_available():
        return reading
    whole, shards = sum(w.nbytes for w in weights), config.trainer.memory.data_parallel_shard_degree or processes
    kept = sum(w.numel() * widened_dtype(w).itemsize * (3 + needs_master(w)) for w in weights)  # and two moments
    return {
        "its part of the weights": whole / shards,
        "of the reference model": reference * whole / shards,
        "of gradients and optimizer state": 0.0 if config.model.lora else kept / shards,
        "the engine's copy": 0.0 if "dtype" in config.sampler else float(whole),  # that of the embedded engine
        **reading,
    }
