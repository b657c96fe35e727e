"""Measures the groups of a round as lens does in its own runs: their kinds, and where the signal comes from."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from lens.integrations.groups import describe, lay_out
from lens.objectives.groups import group_kinds
from lens.objectives.inputs import InputError


def measure_groups(
    advantages: Tensor,
    rewards: Tensor,
    group_ids: Sequence[Hashable] | Tensor,
    *,
    correct: Tensor | None = None,
    valid: Tensor | None = None,
    lengths: Tensor | None = None,
    token_mean: bool = False,
) -> dict[str, float]:
    """Return ``groups/frac_{negative,mixed,positive,silent}`` and ``groups/advantage_share_negative``.

    A silent group teaches nothing: all its advantages are 0. The share is that of negative groups in the sum of
    |advantage|; docs/metrics.md explains it.

    Args:
        advantages: what `group_advantages` returned, [B] or [B, T]. NaN counts as 0.
        rewards, group_ids, correct, valid, lengths: what it was given.
        token_mean: whether the loss is a mean over tokens, so that an answer weighs as many times its tokens. False:
            every answer weighs the same.

    Returns:
        float values; 0 for the share if all advantages are 0.

    Raises:
        InputError: the lengths are missing where they are needed, or the group ids are.
    """
    rows = {"correct": correct, "valid": valid, "lengths": lengths}
    rows = {name: values.to(rewards.device) for name, values in rows.items() if values is not None}
    layout, rows = lay_out(group_ids, rewards), describe(rewards.float(), rows)
    if "lengths" not in rows and (token_mean or advantages.dim() == 2):
        raise InputError("lengths: the numbers of tokens, which a mean over tokens and advantages of tokens need")
    sizes = advantages.double().abs().nan_to_num(nan=0.0)
    if sizes.dim() == 2:
        sizes = sizes.sum(dim=1) / rows["lengths"].clamp(min=1)
    kinds = group_kinds(layout.pack(rows["correct"]), layout.pack(rows["valid"]))
    pull = layout.pack(sizes * rows["lengths"] if token_mean else sizes)
    total = pull.sum().item()
    metrics = {f"groups/frac_{kind}": is_kind.float().mean().item() for kind, is_kind in kinds._asdict().items()}
    metrics["groups/frac_silent"] = (pull == 0).all(dim=1).float().mean().item()
    metrics["groups/advantage_share_negative"] = (pull * kinds.negative).sum().item() / total if total > 0 else 0.0
    return metrics
