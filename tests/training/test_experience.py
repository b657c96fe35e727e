"""A round is split into mini-batches, and those are stored: every value stays with its question or answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch

from lens.training.experience import Experience
from tests.support.command_line import is_equal


@dataclass(frozen=True)
class Longer(Experience):
    """An experience with a value more."""

    subjects: Sequence[str] = ()


def with_subjects(experience: Experience, *subjects: str) -> Longer:
    return Longer(**vars(experience), subjects=subjects)


def test_mini_batches_hold_every_value_once_in_order(experience):
    for size, questions in ((1, [1] * 4), (2, [2] * 2), (3, [3, 1]), (4, [4])):
        parts = experience.split(size)
        assert [len(part.levels) for part in parts] == questions
        frames = pd.concat([part.to_frame() for part in parts], ignore_index=True)
        pd.testing.assert_frame_equal(frames, experience.to_frame(), check_exact=True)
        for name in ("old_logprobs", "reference_logprobs"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(experience, name))
        assert all(part.entropies is None for part in parts)


def test_a_new_value_of_each_question_is_split_by_questions(experience):
    parts = with_subjects(experience, "a", "b", "c", "d").split(2)
    assert [part.subjects for part in parts] == [("a", "b"), ("c", "d")]


def test_a_value_of_neither_questions_nor_answers_is_refused(experience):
    with pytest.raises(ValueError, match="3 values, but 4 questions and 16 completions"):
        with_subjects(experience, "a", "b", "c").split(2)


def test_an_experience_survives_torch(experience, tmp_path: Path):
    torch.save(experience.state(), tmp_path / "state.pt")
    loaded = Experience.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert is_equal(loaded.state(), experience.state())
    assert loaded.rollouts.prompts == experience.rollouts.prompts
