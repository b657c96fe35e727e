"""Stored rollouts weighed again: the numbers of training, and those of another objective."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from lens.commands.replay import replay
from lens.errors import ConfigError
from lens.objectives import grpo_advantages, lens_advantages, shuffled_advantages
from lens.training.stored_experience import name_group_kinds, weigh_again
from tests.support.command_line import make_pupil, run, training
from tests.support.rounding import IN_A_GROUP


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """A run of GRPO and one of LENS."""
    base = tmp_path_factory.getbasetemp()
    folders = {}
    for objective in ("grpo", "lens"):
        folders[objective] = base / "replayed" / objective
        overrides = (f"objective={objective}", "evaluation.every=0", f"hydra.run.dir={folders[objective]}")
        result = run(*training(make_pupil(base), base / "replayed", *overrides, max_steps=2), folder=base / "logs")
        assert result.code == 0, result.stderr
    return folders


def groups(answers: pd.DataFrame) -> list[pd.DataFrame]:
    return [group for _, group in answers.groupby("problem_id", sort=False)]


def test_a_runs_own_objective_gives_what_was_stored(trained):
    for name, objective in (("grpo", grpo_advantages), ("lens", lens_advantages)):
        for file in sorted((trained[name] / "rollouts").glob("*.parquet")):
            stored = pd.read_parquet(file)
            again = weigh_again(stored, objective)
            assert (again["advantage"] == stored["advantage"]).all()
            assert (again["recalibrated_reward"] == stored["calibrated_reward"]).all()


def test_what_lens_would_have_done_with_the_samples_of_grpo(trained, tmp_path, capsys):
    table = replay(trained["grpo"], lens_advantages, name="lens", step=None, target=tmp_path)
    printed = capsys.readouterr().out
    assert "as trained -> under lens" in " ".join(printed.split())  # a long path breaks the line
    assert list(table["step"]) == [1, 2]
    seen = set()
    for file in sorted(tmp_path.glob("step_*.parquet")):
        replayed, stored = pd.read_parquet(file), pd.read_parquet(trained["grpo"] / "rollouts" / file.name)
        assert (replayed["advantage_trained"] == stored["advantage"]).all()
        for group, kind in zip(groups(replayed), name_group_kinds(stored), strict=True):
            confidence, size = group["confidence"].astype(float), len(group)
            right = group["verdict"] == "correct"
            seen.add(kind)
            if kind == "negative":  # by hand, from the paper's section 5
                rewards = -confidence / (2 * confidence.max() - confidence) / size
                expected = 0.25 * (rewards - rewards.mean())
            elif kind == "mixed":
                imported = 1 / ((right / confidence).sum() / size)
                difficulty = max(imported, 2 * confidence.max())
                rewards = right - ~right * confidence / (difficulty - confidence) / size
                expected = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
            else:
                rewards, expected = right.astype(float), 0 * confidence
            assert group["recalibrated_reward"].to_numpy() == pytest.approx(rewards.to_numpy(), abs=IN_A_GROUP)
            assert group["advantage"].to_numpy() == pytest.approx(expected.to_numpy(), abs=IN_A_GROUP)
    assert {"negative", "mixed"} <= seen


def test_the_command_takes_any_objective_and_needs_no_model(trained, tmp_path):
    for file in (trained["lens"] / "checkpoints").rglob("*.safetensors"):
        file.unlink()
    result = run(
        "scripts/replay.py",
        f"run={trained['lens']}",
        "objective=lens",
        "objective.alpha=1",
        "objective.scale_negative=1",
        "step=1",
        f"target={tmp_path / 'new'}",
        folder=tmp_path / "logs",
    )
    assert result.code == 0, result.stderr
    (file,) = (tmp_path / "new").iterdir()
    replayed = pd.read_parquet(file)
    options = {"alpha": 1, "scale_negative": 1}
    again = weigh_again(
        pd.read_parquet(trained["lens"] / "rollouts" / file.name), functools.partial(lens_advantages, **options)
    )
    assert (replayed["advantage"] == again["advantage"]).all()
    assert replayed["calibrated_reward"].min() >= -0.5  # the paper's, whatever the objective
    negative = replayed[replayed["recalibrated_reward"] < -0.5]  # without the 1/G the surest wrong answer gets -1
    assert len(negative) > 0


def test_a_preference_of_the_objective_is_in_its_rewards(trained):
    """rho = policy takes the confidence out: every wrong answer of a group has the same penalty."""
    stored = pd.read_parquet(next((trained["grpo"] / "rollouts").glob("*.parquet")))
    wrong = stored["verdict"] == "incorrect"
    spread = {}
    for name, objective in {"rho": functools.partial(lens_advantages, rho="policy"), "none": lens_advantages}.items():
        rewards = weigh_again(stored, objective)["recalibrated_reward"][wrong]
        spread[name] = rewards.groupby(stored["problem_id"][wrong]).agg(lambda group: group.max() - group.min())
    assert spread["rho"].max() < IN_A_GROUP
    assert spread["none"].max() > 1e-3


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["step=3"], "error: step=3: must be one that is stored: 1, 2"),
        (
            ["run=nowhere"],
            "error: run='nowhere': must be a run folder, or a folder that evaluate.py wrote (there is none)",
        ),
        (["objective.alpha=-1"], "error: objective.alpha=-1: must be a number >= 0"),
        (
            ["target=README.md/new"],
            "error: target='README.md/new': must be a folder that can be written to (Not a directory)",
        ),
    ],
)
def test_what_cannot_be_replayed_is_one_line_and_exit_code_2(trained, tmp_path, overrides, line):
    given = [] if overrides[0].startswith("run=") else [f"run={trained['grpo']}"]
    result = run("scripts/replay.py", *given, *overrides, folder=tmp_path)
    assert result.code == 2
    assert result.one_line().startswith(line)
    assert not (trained["grpo"] / "replayed").exists()


def test_answers_that_are_no_whole_groups_are_refused(trained):
    stored = pd.read_parquet(next((trained["grpo"] / "rollouts").glob("*.parquet")))
    for broken in (stored.iloc[1:], stored.iloc[:-1], stored.sample(frac=1, random_state=0)):
        with pytest.raises(ConfigError, match="whole groups"):
            weigh_again(broken, grpo_advantages)


def test_what_is_drawn_is_drawn_alike_each_time(trained):
    stored = pd.read_parquet(next((trained["grpo"] / "rollouts").glob("*.parquet")))
    state = torch.get_rng_state()
    a, b = weigh_again(stored, shuffled_advantages), weigh_again(stored, shuffled_advantages)
    assert (a["advantage"] == b["advantage"]).all()
    assert torch.equal(state, torch.get_rng_state())
    assert not any(map(math.isnan, a["advantage"]))
