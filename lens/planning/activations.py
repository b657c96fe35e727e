"""Counts the bytes that an update computes in, beside weights, gradients and optimizer state."""

from __future__ import annotations

from omegaconf import DictConfig

from lens.models.head import AT_ONCE
from lens.planning.architecture import Architecture

FLOAT32 = 4  # bytes


def count_working_memory(
    model: Architecture, memory: DictConfig, *, weight_bytes: int, compute_bytes: int, sharded: bool
) -> dict[str, float]:
    """Return the bytes of activations and of logits, by their names in a plan.

    With gradient checkpointing the backward pass computes one layer at a time again, after the head's logits are gone:
    the larger of the two counts.

    Args:
        model: sizes of a decoder with gated layers, as Llama and Qwen are.
        memory: the config's trainer.memory section.
        weight_bytes: bytes of a number in the weights and between the layers.
        compute_bytes: bytes of a number in matrix products.
        sharded: whether several processes share the weights.
    """
    tokens = memory.max_tokens_per_microbatch
    chunk = min(memory.logits_chunk_size, tokens)
    # A micro-batch adds the gradient of the head's whole weight up; for shards it is in what is gathered.
    gradients = 0 if model.adapters or sharded else 1
    head = count_head(model, chunk, weight_bytes, gradients=gradients)
    name = f"logits ({chunk:,} x {model.vocabulary:,})"
    layer = tokens * count_layer(model, weight_bytes, compute_bytes)
    if compute_bytes != weight_bytes and not sharded:
        layer += compute_bytes * model.layer  # autocast's copy of the weights
    if not memory.gradient_checkpointing:
        return {"activations": layer * model.layers, name: head}
    layer += 2 * tokens * compute_bytes * model.intermediate  # gradients inside the feed-forward block
    return {
        "activations": tokens * weight_bytes * model.hidden * model.layers,
        f"{name}, or a layer that is computed again": max(head, layer),
    }


def count_layer(model: Architecture, weight_bytes: int, compute_bytes: int) -> float:
    """Return the bytes that a layer keeps of a token for the backward pass.

    They are

    * of both norms: the input in float32 or wider, and the normalised input in the weights' type;
    * the inputs of linear layers: one for queries, keys and values, and one for gate and up. Where autocast changes the
      type, each of the five has a copy of its own;
    * queries, attention's output, and that output in the order of the projection after it; keys and values;
    * the gate, its activation, the other projection and their product.
    """
    inputs = 2 if compute_bytes == weight_bytes else 5
    of_width = 2 * (max(weight_bytes, FLOAT32) + weight_bytes) + (inputs + 3) * compute_bytes
    return of_width * model.hidden + compute_bytes * (2 * model.kv_width + 4 * model.intermediate)


def count_head(model: Architecture, tokens: int, weight_bytes: int, *, gradients: int) -> float:
    """Return the bytes that the head computes in (lens/models/head.py).

    They are a chunk's logits in the weights' type, two pieces of them in float32 or wider, and gradients of its weight.

    Args:
        model: sizes of the model.
        tokens: tokens whose logits are in memory at once.
        weight_bytes: bytes of a number in the weights.
        gradients: how many gradients of the whole weight there are at once.
    """
    logits = tokens * model.vocabulary
    pieces = 2 * min(logits, AT_ONCE) * max(weight_bytes, FLOAT32)
    return logits * weight_bytes + pieces + gradients * model.vocabulary * model.hidden * weight_bytes
