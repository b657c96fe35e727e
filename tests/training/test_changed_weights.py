"""The share of weights that an update changes: exact for small tensors, and near for large ones."""

from __future__ import annotations

import pytest
import torch

from lens.training.changed_weights import SAMPLED, changed_share, sample_weights


def share_of(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    return changed_share([part.clone() for part in sample_weights(before)], after)


def test_every_weight_of_small_tensors_is_counted():
    before = [torch.zeros(10, 30), torch.zeros(700), torch.zeros(0)]
    after = [tensor.clone() for tensor in before]
    assert share_of(before, after) == 0
    after[0][3] = 1e-30
    after[1][:20] -= 1
    assert share_of(before, after) == pytest.approx(50 / 1000)
    assert share_of(before, [tensor + 1 for tensor in before]) == 1


def test_a_large_tensor_counts_by_its_size_and_no_column_is_missed():
    large, small = torch.zeros(2048, 1024), torch.zeros(1000)
    assert sum(len(part) for part in sample_weights([large])) == pytest.approx(SAMPLED, rel=0.05)
    total = large.numel() + small.numel()
    for columns in (1, 512, 1024):
        changed = large.clone()
        changed[:, :columns] = 1
        expected = 2048 * columns / total
        assert share_of([large, small], [changed, small]) == pytest.approx(expected, rel=0.05)
    assert share_of([large, small], [large, small + 1]) == pytest.approx(1000 / total)


def test_what_is_too_small_for_the_data_type_changes_nothing():
    weights = torch.full((8,), 0.02)
    assert share_of([weights], [weights + 1e-6]) == 1
    assert share_of([weights.bfloat16()], [weights.bfloat16() + 1e-6]) == 0
