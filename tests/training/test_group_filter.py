"""Groups are dropped and replaced: what a filter keeps, and runs that use one."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from lens.errors import ConfigError
from lens.objectives import grpo_advantages, lens_advantages
from lens.training.experience import Experience
from lens.training.group_filter import GroupFilter
from tests.support.command_line import assert_same_end, is_equal, metrics_of, run, training

CORRECT = torch.tensor([[True, False], [False, False], [True, True], [True, False]])
VALID = torch.tensor([[True, True], [True, True], [True, True], [True, False]])
CONFIDENCE = torch.tensor([[0.5, 0.4], [0.9, 0.3], [0.8, 0.7], [0.6, 0.5]])


def test_a_filter_looks_at_the_final_advantages():
    kept = GroupFilter("zero_variance", 2)
    assert kept.find_kept(grpo_advantages(CORRECT, valid=VALID), CORRECT, VALID) == [0]
    assert kept.find_kept(lens_advantages(CORRECT, CONFIDENCE, valid=VALID), CORRECT, VALID) == [0, 1]
    by_token = torch.zeros(4, 2, 3)
    by_token[2, 1, 2], by_token[1] = -0.1, float("nan")
    assert kept.find_kept(by_token, CORRECT, VALID) == [2]


def test_all_correct_counts_valid_answers_only():
    advantages = torch.zeros(4, 2)
    assert GroupFilter("all_correct", 2).find_kept(advantages, CORRECT, VALID) == [0, 1]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (("none", 2), "filter_groups.drop='none': must be one of zero_variance, all_correct"),
        (("all_correct", 0), "filter_groups.max_draws=0: must be an integer >= 1"),
        (("all_correct", True), "filter_groups.max_draws=True: must be an integer >= 1"),
    ],
)
def test_a_filter_that_cannot_work_is_refused(values, line):
    with pytest.raises(ConfigError) as error:
        GroupFilter(*values)
    assert str(error.value) == line


def test_experience_that_is_joined_is_that_which_was_split(experience):
    """Parts of other widths: the second half alone has shorter answers."""
    parts = [experience.take_questions([place]) for place in range(4)]
    for place, part in enumerate(parts):
        width = int(part.rollouts.lengths.max())
        short = {name: getattr(part.rollouts, name)[:, :width] for name in ("completion_ids", "logprobs")}
        rollouts = type(part.rollouts)(**{**vars(part.rollouts), **short})
        others = {name: getattr(part, name)[:, :width] for name in ("old_logprobs", "reference_logprobs")}
        parts[place] = Experience(**{**vars(part), "rollouts": rollouts, **others})
    joined = Experience.join(parts)
    mask, whole = experience.rollouts.mask, experience.rollouts
    assert torch.equal(joined.rollouts.completion_ids * mask, whole.completion_ids * mask)
    assert torch.equal(joined.old_logprobs[mask], experience.old_logprobs[mask])
    assert is_equal(joined.rollouts.texts, whole.texts) and joined.levels == experience.levels
    assert torch.equal(joined.correct, experience.correct) and not joined.advantages.any()


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_filtered_run_trains_on_mixed_groups_alone_and_resumes_like_any_other(pupil, logs, tmp_path):
    overrides = ["objective=grpo", "filter_groups=zero_variance", "evaluation.every=1"]
    command = training(pupil, tmp_path, *overrides, num_prompts_per_step=2, checkpoint_every=1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = run(*command, f"hydra.run.dir={whole}", folder=logs)
    assert result.code == 0, result.stderr
    steps = [line for line in metrics_of(whole) if "reward" in line]
    assert [line["groups/frac_mixed"] for line in steps] == [1.0] * 4
    assert steps[-1]["total/groups_dropped"] > 0
    frames = [pd.read_parquet(file) for file in sorted((whole / "rollouts").glob("step_*.parquet"))]
    stored = pd.concat(frames)
    assert (stored.groupby([stored.index // 4, "problem_id"])["advantage"].std() > 0).all()
    trained = sum(frame["length"].sum() for frame in frames)
    assert steps[-1]["total/tokens_generated"] > trained  # the tokens of dropped groups count too

    part = [*command, f"hydra.run.dir={parts}"]
    assert run(*part, "trainer.max_steps=1", folder=logs).code == 0
    assert run(*part, folder=logs).code == 0
    assert_same_end(parts, whole)


def test_a_shaped_reward_gives_a_group_of_wrong_answers_a_spread(pupil, logs, tmp_path):
    """So such a group stays: the filter looks at advantages, not at verdicts."""
    overrides = ["objective=grpo", "reward_shaping=overlong", "reward_shaping.buffer=25"]
    command = training(pupil, tmp_path, *overrides, max_steps=1)
    result = run(*command, f"hydra.run.dir={tmp_path / 'run'}", folder=logs)
    assert result.code == 0, result.stderr
    (file,) = (tmp_path / "run" / "rollouts").glob("step_*.parquet")
    stored = pd.read_parquet(file)
    expected = (stored["verdict"] == "correct") - (stored["length"] - 1) / 25
    assert stored["reward"].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-6)
    (line,) = [line for line in metrics_of(tmp_path / "run") if "reward" in line]
    assert line["reward/shaped"] == pytest.approx(expected.mean(), abs=1e-6)
    spread = stored.groupby("problem_id")["length"].transform("nunique") > 1
    wrong = stored.groupby("problem_id")["verdict"].transform(lambda verdicts: (verdicts != "correct").all())
    assert (spread & wrong).any()
    assert (stored[spread & wrong].groupby("problem_id")["advantage"].std() > 0).all()


def test_a_filter_that_would_drop_everything_for_ever_ends_the_run_with_the_counts(pupil, logs, tmp_path):
    """Close to temperature 0 all answers to a question are the same, so GRPO has nothing to compare."""
    overrides = ["objective=grpo", "filter_groups=zero_variance", "filter_groups.max_draws=3"]
    command = training(pupil, tmp_path, *overrides, "trainer.rollouts.temperature=0.001", num_prompts_per_rollout=8)
    result = run(*command, f"hydra.run.dir={tmp_path / 'run'}", folder=logs)
    assert result.code == 1
    line = result.one_line()
    assert "filter_groups.max_draws=3 draws of 8 questions" in line and "of 24 groups, not 8" in line
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["train/global_step"] == 0
    assert list((tmp_path / "run" / "checkpoints").glob("step_*"))
