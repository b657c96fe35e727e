"""Measures the groups of an optimizer batch: rewards, confidences, kinds of groups, and where the signal comes from."""

from __future__ import annotations

import torch
from torch import Tensor

from lens.grading.judge import UNJUDGED
from lens.objectives.groups import group_kinds
from lens.training.experience import Experience, mean_over_tokens


def measure_groups(experience: Experience, token_weights: Tensor) -> dict[str, float]:
    """Return the metrics of these groups; docs/metrics.md explains each.

    Args:
        experience: an optimizer batch.
        token_weights: [Q*G], the weight of each completion's tokens in the loss.
    """
    r, kinds = experience.rollouts, group_kinds(experience.correct, experience.valid)
    metrics = {
        "reward": experience.correct.float().mean().item(),
        "reward/calibrated": mean_where(experience.calibrated, experience.valid),
        "confidence/correct_mean": mean_where(experience.confidence, experience.valid & experience.correct),
        "confidence/incorrect_mean": mean_where(experience.confidence, experience.valid & ~experience.correct),
        "completions/mean_length": r.lengths.float().mean().item(),
        "completions/clipped_ratio": r.truncated.float().mean().item(),
        "completions/valid_ratio": experience.valid.float().mean().item(),
        "entropy": mean_where(-r.logprobs if experience.entropies is None else experience.entropies, r.mask),
        "groups/advantage_share_negative": advantage_share_negative(experience, token_weights, kinds.negative),
    }
    if not torch.equal(experience.rewards, experience.correct.float()):
        metrics["reward/shaped"] = mean_where(experience.rewards, experience.valid)
    if experience.trainer_logprobs is not None:
        metrics |= measure_logp_difference(experience.trainer_logprobs, r.logprobs, r.mask)
    if experience.importance is not None:
        ratios = (experience.trainer_logprobs - r.logprobs)[r.mask].double().exp()
        metrics |= {
            "sampling/importance_ratio_mean": ratios.mean().item(),
            "sampling/importance_ratio_min": ratios.min().item(),
            "sampling/importance_ratio_max": ratios.max().item(),
            "sampling/importance_weight_mean": mean_where(experience.importance, r.mask),
        }
    for verdict in ("no_answer", *UNJUDGED):
        metrics[f"grading/{verdict}_rate"] = sum(v == verdict for v in experience.verdicts) / len(experience.verdicts)
    metrics["grading/unjudged_rate"] = sum(v in UNJUDGED for v in experience.verdicts) / len(experience.verdicts)
    buckets = {"": torch.ones(len(experience.levels), dtype=torch.bool)}
    for level in sorted(set(experience.levels), key=lambda level: (level is None, level)):
        name = "/unlevelled" if level is None else f"/level_{level}"
        buckets[name] = torch.tensor([other == level for other in experience.levels])
    for bucket, members in buckets.items():
        for kind, is_kind in kinds._asdict().items():
            metrics[f"groups/frac_{kind}{bucket}"] = is_kind[members].float().mean().item()
    return metrics


def advantage_share_negative(experience: Experience, token_weights: Tensor, negative: Tensor) -> float:
    """Return the share of negative groups, bool [Q, 1], in the sum of |advantage| weighted as in the loss."""
    sizes = experience.advantages.nan_to_num().abs()
    sizes = sizes if sizes.dim() == 2 else mean_over_tokens(sizes, experience.rollouts)
    pull = sizes.double() * (token_weights * experience.rollouts.lengths).view_as(sizes)
    total = pull.sum().item()
    return (pull * negative).sum().item() / total if total > 0 else 0.0


def mean_where(values: Tensor, where: Tensor) -> float:
    """Return the mean of the values where the condition holds; nan if it holds nowhere."""
    return values[where].double().mean().item()


def measure_logp_difference(trainer_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """Return the mean and the maximum of |trainer_logprobs - sampler_logprobs| on real tokens; all are [N, T]."""
    difference = (trainer_logprobs - sampler_logprobs)[mask].abs().double()
    return {
        "sampling/logp_difference_mean": difference.mean().item(),
        "sampling/logp_difference_max": difference.max().item(),
    }
