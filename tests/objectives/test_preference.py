"""Preferences against plain Python, and on answers so long that their probabilities underflow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lens.objectives import calibrated_rewards, grpo_advantages, lens_advantages

LENGTHS = torch.tensor([[5, 3, 8, 4], [2, 7, 7, 1]])
CONFIDENCE = torch.tensor([[0.9, 0.5, 0.8, 0.7], [0.95, 0.6, 0.7, 0.4]], dtype=torch.float64)
CORRECT = torch.tensor([[False] * 4, [True, False, False, False]])


def by_hand(ratios: list[list[float]]) -> Tensor:
    """Calibrated rewards of CORRECT, answer by answer, from pi / rho in plain Python."""
    rewards = []
    for right, ratio in zip(CORRECT.tolist(), ratios, strict=True):
        of_right = sum(1 / q for r, q in zip(right, ratio, strict=True) if r)
        d = max(2 * max(ratio), 4 / of_right if of_right else 0.0)
        rewards.append([1.0 if r else -q / (d - q) / 4 for r, q in zip(right, ratio, strict=True)])
    return torch.tensor(rewards)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
def test_a_number_divides_by_its_power(gamma):
    ratios = [
        [c**n / gamma**n for c, n in zip(*row, strict=True)]
        for row in zip(CONFIDENCE.tolist(), LENGTHS.tolist(), strict=True)
    ]
    rewards = calibrated_rewards(CORRECT, CONFIDENCE, lengths=LENGTHS, rho=gamma)
    torch.testing.assert_close(rewards, by_hand(ratios), rtol=1e-5, atol=1e-9)


def test_the_policy_gives_every_wrong_answer_the_same_weight():
    # D is 1/accuracy = 4 in the mixed group, so 1/(D - 1) = 1/3; in the negative one the bound 2 max gives D = 2.
    rewards = calibrated_rewards(CORRECT, CONFIDENCE, lengths=LENGTHS, rho="policy")
    torch.testing.assert_close(rewards, torch.tensor([[-1 / 4] * 4, [1.0, *[-1 / 12] * 3]]))
    advantages = lens_advantages(CORRECT, CONFIDENCE, lengths=LENGTHS, rho="policy", eps=1e-12)
    torch.testing.assert_close(advantages, grpo_advantages(CORRECT, eps=1e-12))


def test_answers_of_one_token_have_their_probability_for_confidence():
    lengths = torch.ones_like(LENGTHS)
    plain = calibrated_rewards(CORRECT, CONFIDENCE, lengths=lengths, rho=1.0)
    torch.testing.assert_close(plain, calibrated_rewards(CORRECT, CONFIDENCE))
    torch.testing.assert_close(plain, calibrated_rewards(CORRECT, CONFIDENCE, lengths=lengths, rho=0.7))


@pytest.mark.parametrize("rho", [1.0, 0.9, "policy"])
def test_long_answers_underflow_nowhere(rho):
    lengths = torch.tensor([[4096, 3000, 4096, 1], [4096, 4096, 2000, 4096]])
    rewards = calibrated_rewards(CORRECT, CONFIDENCE, lengths=lengths, rho=rho)
    assert rewards.isfinite().all()
    assert ((rewards <= 0) | CORRECT).all() and rewards.min() >= -1 / 4
    assert lens_advantages(CORRECT, CONFIDENCE, lengths=lengths, rho=rho).isfinite().all()


def test_answers_that_may_not_teach_decide_nothing():
    valid = torch.tensor([[True, True, False, True], [True, True, True, False]])
    other = torch.where(valid, CONFIDENCE, 0.999)
    for rho in (1.0, 0.9, "policy"):
        first, second = (
            calibrated_rewards(CORRECT, c, lengths=LENGTHS, rho=rho, valid=valid) for c in (CONFIDENCE, other)
        )
        assert torch.equal(first, second) and (first[~valid] == 0).all()
