"""Importance weights by hand."""

from __future__ import annotations

import pytest
import torch

from lens.losses.importance import importance_weights

# Ratios policy / engine: 2, 0.5 and 4 in the first answer, which has three tokens, and 3 in the second, which has one.
RATIOS = torch.tensor([[2.0, 0.5, 4.0], [3.0, 7.0, 7.0]], dtype=torch.float64)
REAL = torch.tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize(
    ("mode", "cap", "expected"),
    [
        ("token_truncate", 2.5, [[2, 0.5, 2.5], [2.5, 1, 1]]),
        ("token_mask", 2.5, [[2, 0.5, 0], [0, 1, 1]]),
        ("token_mask", 3.5, [[2, 0.5, 0], [3, 1, 1]]),
        ("sequence_mask", 3.5, [[0, 0, 0], [3, 3, 3]]),  # 2 * 0.5 * 4 = 4 is above the cap
        ("sequence_mask", 5.0, [[4, 4, 4], [3, 3, 3]]),
    ],
)
def test_importance_weights_by_hand(mode, cap, expected):
    sampler = torch.full(RATIOS.shape, -1.5, dtype=torch.float64)
    weights = importance_weights(sampler + RATIOS.log(), sampler, REAL, mode, cap=cap)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(weights[REAL], expected[REAL])


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_mask"])
def test_an_engine_that_is_the_policy_leaves_every_weight_at_one(mode):
    logprobs = -torch.rand(2, 3)
    assert torch.equal(importance_weights(logprobs, logprobs, REAL, mode, cap=2.0), torch.ones(2, 3))


def test_an_unknown_rule_of_importance_sampling_is_refused():
    with pytest.raises(ValueError, match="token_truncate, token_mask, sequence_mask"):
        importance_weights(RATIOS, RATIOS, REAL, "none", cap=2.0)
