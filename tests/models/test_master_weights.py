"""Weights in bfloat16 with masters: the masters are those of AdamW in float32, and a checkpoint brings them back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from lens.errors import ConfigError
from lens.models.loading import load_model
from lens.models.master_weights import MasterWeightAdamW
from lens.runs.checkpoints import STATE_FILE, restore_optimizer, save_checkpoint
from tests.support.command_line import is_equal

CHOICES = {"lr": 1e-3, "betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.1}


def give_gradients(weights: list[nn.Parameter], seed: int) -> None:
    """Give each weight a random gradient in float32; weights of equal shapes and order get equal ones."""
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.grad_dtype = torch.float32
        weight.grad = torch.randn(weight.shape, generator=generator)


def test_masters_are_the_weights_of_adamw_in_float32_bit_for_bit():
    torch.manual_seed(0)
    wide = [nn.Parameter(torch.randn(shape)) for shape in ((3, 5), (7,), (2, 2))]
    mixed = [nn.Parameter(wide[0].bfloat16()), nn.Parameter(wide[1].clone()), nn.Parameter(wide[2].bfloat16())]
    copies = [nn.Parameter(weight.detach().float().clone()) for weight in mixed]
    ours, theirs = MasterWeightAdamW(mixed, **CHOICES), AdamW(copies, **CHOICES)
    for seed in range(6):
        for optimizer in (ours, theirs):
            give_gradients(optimizer.param_groups[0]["params"], seed)
            optimizer.param_groups[0]["lr"] = 1e-3 / (1 + seed)  # as a schedule does
            optimizer.step()
        assert all(map(torch.equal, ours.masters(), copies))
        assert all(torch.equal(weight, copy.to(weight.dtype)) for weight, copy in zip(mixed, copies, strict=True))
    assert [set(ours.state[weight]) - {"step", "exp_avg", "exp_avg_sq"} for weight in mixed] == [
        {"master"},
        set(),  # a weight in float32 is its own
        {"master"},
    ]


def test_updates_that_round_to_nothing_add_up_until_the_weight_changes():
    # From 1/64 to 1/32 the numbers of bfloat16 are 2^-13 = 1.22e-4 apart. So it takes 62 updates of 1e-6 from one of
    # them to pass half of that. Equal gradients make updates of the learning rate.
    weights = {kind: nn.Parameter(torch.full((4,), 0.02, dtype=torch.bfloat16)) for kind in (MasterWeightAdamW, AdamW)}
    changed_at = dict.fromkeys(weights)
    for kind, weight in weights.items():
        first, optimizer = weight.detach().clone(), kind([weight], lr=1e-6, weight_decay=0.0)
        for update in range(1, 201):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            if changed_at[kind] is None and not torch.equal(weight, first):
                changed_at[kind] = update
    assert changed_at[AdamW] is None
    assert changed_at[MasterWeightAdamW] == pytest.approx(62, abs=1)
    assert torch.equal(weights[MasterWeightAdamW], torch.full((4,), 0.02).bfloat16() - 2 * 2**-13)  # 2e-4 / 1.22e-4


def test_a_checkpoint_holds_the_masters(tiny_folder: Path, tmp_path: Path):
    model, tokenizer = load_model(str(tiny_folder), dtype="bfloat16")
    optimizer = MasterWeightAdamW(model.parameters(), **CHOICES)
    for seed in range(2):
        give_gradients(list(model.parameters()), seed)
        optimizer.step()
    saved = save_checkpoint(tmp_path, model, tokenizer, optimizer, {"step": 2}, keep=1)
    again, restored = restore(saved)
    assert is_equal(list(restored.state.values()), list(optimizer.state.values()))
    assert all(torch.equal(w, m.bfloat16()) for w, m in zip(again.parameters(), restored.masters(), strict=True))


def test_a_checkpoint_without_masters_is_refused(tiny_folder: Path, tmp_path: Path):
    model, tokenizer = load_model(str(tiny_folder), dtype="bfloat16")
    optimizer = AdamW(model.parameters(), **CHOICES)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    saved = save_checkpoint(tmp_path, model, tokenizer, optimizer, {"step": 1}, keep=1)
    with pytest.raises(ConfigError, match=r"optimizer has no .+:master") as error:
        restore(saved)
    assert error.value.key == "resume"


def restore(checkpoint: Path) -> tuple[nn.Module, MasterWeightAdamW]:
    """Model and optimizer as a run that resumes makes them."""
    model, _ = load_model(str(checkpoint), dtype="bfloat16")
    optimizer = MasterWeightAdamW(model.parameters(), **CHOICES)
    groups = torch.load(checkpoint / STATE_FILE, weights_only=True)["param_groups"]
    restore_optimizer(checkpoint, model, optimizer, groups)
    return model, optimizer
