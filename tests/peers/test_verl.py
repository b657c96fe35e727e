"""Objectives and losses against the functions of verl itself, in an environment of its own: make test-peers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from lens.losses import cispo_loss, gmpo_loss, gspo_loss, ppo_clip_loss, reinforce_loss, sapo_loss, token_weights
from lens.losses.surrogate import call_surrogate
from lens.objectives import grpo_advantages, reinforce_pp_baseline_advantages, rloo_advantages

verl = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed here: make test-peers")
from verl.workers.config import ActorConfig  # noqa: E402 - only where verl is installed

GROUPS, SIZE, LONGEST = 12, 4, 7


@pytest.fixture(params=range(3))
def batch(request) -> dict[str, Tensor]:
    """Answers in groups of SIZE: rewards [Q, G], lengths [Q*G], log-probabilities [Q*G, T], and a mask."""
    generator = torch.Generator().manual_seed(request.param)
    count = GROUPS * SIZE
    lengths = torch.randint(1, LONGEST + 1, (count,), generator=generator)
    old = -2 * torch.rand(count, LONGEST, generator=generator, dtype=torch.float64)
    moved = 0.6 * torch.randn(count, LONGEST, generator=generator, dtype=torch.float64)
    return {
        "correct": torch.rand(GROUPS, SIZE, generator=generator) < torch.rand(GROUPS, 1, generator=generator),
        "lengths": lengths,
        "mask": torch.arange(LONGEST) < lengths[:, None],
        "old": old,
        "new": old + moved,
        "advantages": torch.randn(count, generator=generator, dtype=torch.float64),
    }


# --- advantages ------------------------------------------------------------------------------------------------------


ESTIMATORS = {
    "grpo": (grpo_advantages, verl.compute_grpo_outcome_advantage, {}),
    "dr_grpo": (
        partial(grpo_advantages, scale_by_std=False),
        verl.compute_grpo_outcome_advantage,
        {"norm_adv_by_std_in_grpo": False},
    ),
    "rloo": (rloo_advantages, verl.compute_rloo_outcome_advantage, {}),
}


def verls(estimator: Callable, batch: dict[str, Tensor], **options: object) -> Tensor:
    """The advantages [Q*G, T] of an estimator; the reward lies on the last token, as verl puts it."""
    rewards = torch.zeros(batch["mask"].shape, dtype=torch.float64)
    rewards[torch.arange(len(rewards)), batch["lengths"] - 1] = batch["correct"].flatten().double()
    index = np.repeat(np.arange(GROUPS), SIZE)
    return estimator(rewards, batch["mask"].double(), index, **options)[0]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_advantages_are_verls(batch, name):
    ours, estimator, options = ESTIMATORS[name]
    per_token = ours(batch["correct"]).flatten()[:, None] * batch["mask"]
    torch.testing.assert_close(per_token.double(), verls(estimator, batch, **options), atol=1e-5, rtol=1e-5)


def test_whitened_advantages_are_verls(batch):
    ours = reinforce_pp_baseline_advantages(batch["correct"], lengths=batch["lengths"].view(GROUPS, SIZE))
    theirs = verls(verl.compute_reinforce_plus_plus_baseline_outcome_advantage, batch)
    torch.testing.assert_close((ours.flatten()[:, None] * batch["mask"]).double(), theirs, atol=1e-5, rtol=1e-5)


# --- losses ----------------------------------------------------------------------------------------------------------


def actor(**options: object) -> ActorConfig:
    return ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **options)


# Ours, verl's, and verl's config. Its dual clip cannot be switched off; CISPO's bounds are 1 - low and 1 + high.
LOSSES = {
    "ppo_clip": (
        partial(ppo_clip_loss, epsilon_low=0.2, epsilon_high=0.28, dual_clip=3.0),
        verl.compute_policy_loss_vanilla,
        {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0},
    ),
    "reinforce": (reinforce_loss, verl.compute_policy_loss_gpg, {}),
    "gspo": (
        partial(gspo_loss, epsilon_low=0.05, epsilon_high=0.06),
        verl.compute_policy_loss_gspo,
        {"clip_ratio_low": 0.05, "clip_ratio_high": 0.06},
    ),
    "cispo": (
        partial(cispo_loss, ratio_min=0.8, ratio_max=1.3),
        verl.compute_policy_loss_cispo,
        {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3},
    ),
    "gmpo": (
        partial(gmpo_loss, log_epsilon_low=0.2, log_epsilon_high=0.3),
        verl.compute_policy_loss_geo_mean,
        {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3},
    ),
    "sapo": (partial(sapo_loss, tau_positive=1.0, tau_negative=1.05), verl.compute_policy_loss_sapo, {}),
}


@pytest.mark.parametrize("mode", ["seq-mean-token-mean", "token-mean"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_are_verls(batch, name, mode):
    ours, theirs, options = LOSSES[name]
    if mode == "token-mean" and name in ("gmpo", "sapo"):
        mode = "seq-mean-token-mean"  # verl's average is this one, whatever is asked for
    mask, lengths, advantages = batch["mask"], batch["lengths"], batch["advantages"]
    mine, other = (batch["new"].clone().requires_grad_() for _ in range(2))
    per_token = advantages[:, None].expand_as(mask)
    weights = token_weights(lengths, mode, max_completion_length=LONGEST)[:, None].expand_as(mask)[mask]
    losses, _ = call_surrogate(ours, mine[mask], batch["old"][mask], per_token[mask], lengths)
    (losses * weights).sum().backward()
    loss, _ = theirs(batch["old"], other, per_token, mask.double(), loss_agg_mode=mode, config=actor(**options))
    loss.backward()
    torch.testing.assert_close((losses * weights).sum(), loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.grad, other.grad * mask, atol=1e-6, rtol=1e-5)
