"""The penalty for answers that come close to the token limit."""

from __future__ import annotations

import pytest
import torch

from lens.objectives.reward_shaping import overlong_penalty


def test_the_penalty_rises_from_nothing_to_the_factor_over_the_buffer():
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0, 0.0]])
    lengths = torch.tensor([[1, 16, 17, 18, 19, 20]])
    shaped = overlong_penalty(rewards, lengths=lengths, max_completion_length=20, buffer=4, factor=0.8)
    torch.testing.assert_close(shaped, torch.tensor([[1.0, 1.0, -0.2, -0.4, 0.4, -0.8]]))


def test_the_numbers_of_dapo():
    """DAPO, eq. 13: L_max 20480, L_cache 4096; 18,432 tokens are in the middle of the buffer."""
    lengths = torch.tensor([[16_384, 18_432, 20_480]])
    shaped = overlong_penalty(torch.zeros(1, 3), lengths=lengths, max_completion_length=20_480, buffer=4_096)
    assert shaped.tolist() == [[0, -0.5, -1]]


def test_a_buffer_longer_than_an_answer_is_refused():
    with pytest.raises(ValueError, match="buffer=8 must be at most the 4 tokens of an answer"):
        overlong_penalty(torch.zeros(1, 1), lengths=torch.ones(1, 1), max_completion_length=4, buffer=8)
