"""Losses against the loss of TRL's own trainer, in an environment that has it: make test-peers."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lens.losses import cispo_loss, gspo_loss, ppo_clip_loss, sapo_loss, token_weights
from lens.losses.surrogate import call_surrogate

trl = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed here: make test-peers")

COUNT, LONGEST, LIMIT = 24, 7, 9
# Ours, TRL's settings, and the average that TRL's loss_type takes.
LOSSES = {
    "ppo_clip": (
        partial(ppo_clip_loss, epsilon_low=0.2, epsilon_high=0.28),
        {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.28},
        "seq-mean-token-mean",
    ),
    "ppo_clip over all tokens": (
        partial(ppo_clip_loss, epsilon_low=0.2, epsilon_high=0.28),
        {"loss_type": "bnpo", "epsilon_low": 0.2, "epsilon_high": 0.28},
        "token-mean",
    ),
    "ppo_clip over the longest": (
        partial(ppo_clip_loss, epsilon_low=0.2, epsilon_high=0.2),
        {"loss_type": "dr_grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
        "seq-mean-token-sum-norm",
    ),
    "gspo": (
        partial(gspo_loss, epsilon_low=0.05, epsilon_high=0.06),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.06},
        "seq-mean-token-mean",
    ),
    "cispo": (partial(cispo_loss, ratio_max=1.3), {"loss_type": "cispo", "epsilon_high": 1.3}, "token-mean"),
    "sapo": (partial(sapo_loss, tau_positive=1.0, tau_negative=1.05), {"loss_type": "sapo"}, "seq-mean-token-mean"),
}


def trls(logprobs: Tensor, batch: dict[str, Tensor], **settings: Any) -> Tensor:
    """The loss of TRL's trainer for log-probabilities [B, T]; all but its loss stands still."""
    alone = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **options: (logprobs, torch.zeros_like(logprobs), None),
        accelerator=alone,
        args=SimpleNamespace(delta=None, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, steps_per_generation=1),
        beta=0.0,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=LIMIT,
        _metrics={"train": defaultdict(list)},
        _entropy_bonus_enabled=False,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        **{"importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2} | settings,
    )
    ids, mask = torch.zeros(COUNT, 1, dtype=torch.long), batch["mask"].long()
    inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": mask, "completion_mask": mask}
    inputs |= {"advantages": batch["advantages"], "old_per_token_logps": batch["old"], "num_items_in_batch": mask.sum()}
    return trl.GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_are_trls(name, seed):
    ours, settings, mode = LOSSES[name]
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LONGEST + 1, (COUNT,), generator=generator)
    mask = torch.arange(LONGEST) < lengths[:, None]
    old = -2 * torch.rand(COUNT, LONGEST, generator=generator, dtype=torch.float64)
    new = old + 0.6 * torch.randn(COUNT, LONGEST, generator=generator, dtype=torch.float64)
    advantages = torch.randn(COUNT, generator=generator, dtype=torch.float64)
    mine, other = (new.clone().requires_grad_() for _ in range(2))

    per_token = advantages[:, None].expand_as(mask)
    weights = token_weights(lengths, mode, max_completion_length=LIMIT)[:, None].expand_as(mask)[mask]
    losses, _ = call_surrogate(ours, mine[mask], old[mask], per_token[mask], lengths)
    (losses * weights).sum().backward()
    loss = trls(other, {"mask": mask, "old": old, "advantages": advantages}, **settings)
    loss.backward()
    torch.testing.assert_close((losses * weights).sum(), loss, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(mine.grad, other.grad * mask, atol=1e-6, rtol=1e-5)
