"""A round is split into mini-batches, and those are stored: every value stays with its question or answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch

from lens.objectives import grpo_advantages
from lens.training.experience import Experience, make_experience
from lens.training.group_metrics import measure_groups
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


UNJUDGED = ["incorrect", "timeout", "correct", "error"]


def judged_as(experience: Experience, verdicts: list[str], unjudgeable: str) -> Experience:
    """The first question's four answers with these verdicts, under GRPO."""
    rollouts = experience.split(1)[0].rollouts
    return make_experience(rollouts, [1], verdicts, grpo_advantages, unjudgeable=unjudgeable)


def test_an_answer_that_cannot_be_judged_is_penalised_like_a_wrong_one(experience):
    unjudged = judged_as(experience, UNJUDGED, "incorrect")
    wrong = judged_as(experience, ["incorrect", "incorrect", "correct", "incorrect"], "incorrect")
    assert torch.equal(unjudged.advantages, wrong.advantages) and torch.equal(unjudged.calibrated, wrong.calibrated)
    assert unjudged.valid.all() and unjudged.advantages[0, 1] == unjudged.advantages[0, 0] < 0
    assert unjudged.to_frame()["verdict"].tolist() == UNJUDGED  # why it is wrong stays to be seen
    metrics = measure_groups(unjudged, torch.ones(4))
    rates = {name: metrics[f"grading/{name}_rate"] for name in ("timeout", "error", "bad_gold", "unjudged")}
    assert rates == {"timeout": 0.25, "error": 0.25, "bad_gold": 0, "unjudged": 0.5}


def test_it_teaches_nothing_if_the_config_says_so_or_its_gold_answer_cannot_be_judged(experience):
    for verdicts, unjudgeable in (
        (UNJUDGED, "invalid"),
        (["incorrect", "bad_gold", "correct", "bad_gold"], "invalid"),
        (["incorrect", "bad_gold", "correct", "bad_gold"], "incorrect"),
    ):
        neutral = judged_as(experience, verdicts, unjudgeable)
        assert neutral.valid.tolist() == [[True, False, True, False]]
        assert neutral.advantages[0, [1, 3]].tolist() == [0, 0]
        assert neutral.advantages[0, 2] == -neutral.advantages[0, 0] > 0  # of two answers, one right


def test_scores_are_the_rewards_and_leave_the_verdicts_alone(experience):
    """So a negative group of answers that are right in part teaches under GRPO."""
    rollouts = experience.rollouts.take_questions([0])
    verdicts, scores = ["incorrect"] * 4, [0.0, 0.5, 0.25, 0.25]
    made = make_experience(rollouts, [1], verdicts, grpo_advantages, scores=scores)
    assert made.rewards.tolist() == [scores] and not made.correct.any()
    assert made.advantages.sign().tolist() == [[-1.0, 1.0, 0.0, 0.0]]
    assert not make_experience(rollouts, [1], verdicts, grpo_advantages).advantages.any()
