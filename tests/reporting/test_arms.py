"""Run folders become arms: what is compared, what is named as odd, and what is refused."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from lens.config.keys import find_differing_keys
from lens.errors import ConfigError
from lens.reporting.arms import make_label, make_setting_title
from lens.reporting.finding_runs import load_arms
from lens.reporting.pairing import find_baseline
from tests.support.run_folders import SKILL, make_run


def test_an_arm_is_called_by_what_sets_it_apart(tmp_path):
    shared = ["model.name_or_path=/models/x", "trainer.max_steps=20", "outputs=/o", "experiment=tiny"]
    make_run(tmp_path / "a", "grpo", 0, *shared)
    for number, alpha in enumerate((16, 0.25, 4)):
        config = {"objective": {"alpha": alpha}}
        make_run(tmp_path / f"b{number}", "lens", 0, *shared, f"objective.alpha={alpha}", config=config)
    arms, _ = load_arms([tmp_path])
    assert [arm.label for arm in arms] == ["grpo", "lens alpha=0.25", "lens alpha=4", "lens alpha=16"]


def test_labels_leave_out_what_changes_no_result():
    overrides = ["objective=lens", "seed=1", "outputs=/x", "tracking.wandb.mode=offline", "experiment=demo"]
    overrides += ["jobs=1", "profile=true"]
    assert make_label("lens", overrides) == "lens"
    assert make_label("lens", [*overrides, "objective.alpha=1", "loss.beta=0.1"]) == "lens alpha=1 beta=0.1"


def test_a_seed_that_occurs_twice_is_refused(runs):
    copy = make_run(runs / "again", "grpo", 2)
    with pytest.raises(ConfigError, match=r"seeds \[2\]") as error:
        load_arms([runs])
    assert str(copy) in str(error.value)
    assert str(runs / "grpo-2") in str(error.value)


def test_an_arm_of_two_configs_is_refused(runs):
    other = make_run(runs / "other", "grpo", 9, config={"trainer": {"learning_rate": 2e-4}})
    with pytest.raises(ConfigError, match=r"trainer\.learning_rate") as error:
        load_arms([runs])
    assert str(other) in str(error.value)


def test_arms_of_two_evaluations_are_refused(runs):
    make_run(runs / "other", "uniform", 0, config={"evaluation": {"num_samples": 8}})
    with pytest.raises(ConfigError, match="num_samples"):
        load_arms([runs])


def test_arms_that_were_evaluated_at_other_steps_are_compared(runs):
    make_run(runs / "other", "uniform", 0, config={"evaluation": {"every": 20}})
    assert [arm.label for arm in load_arms([runs])[0]] == ["grpo", "lens", "uniform"]


def test_a_folder_without_runs_is_refused(tmp_path):
    (tmp_path / "half" / ".hydra").mkdir(parents=True)
    (tmp_path / "half" / ".hydra" / "config.yaml").touch()
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(ConfigError, match=r"summary\.json") as error:
            load_arms([folder])
        assert error.value.key == "runs"


def test_configs_differ_in_what_decides_results():
    a = {"seed": 1, "outputs": "x", "trainer": {"beta": 0, "lr": [1, 2]}, "tracking": {"mode": 1}}
    b = {"seed": 2, "outputs": "y", "trainer": {"beta": 1, "lr": [1, 2], "seed": 3}, "tracking": {"mode": 2}}
    assert find_differing_keys(a, a) == []
    assert find_differing_keys(a, b) == ["trainer.beta", "trainer.seed"]


# --- what is odd -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluations/step_000000.parquet", b"PAR1"),
        ("evaluations/step_000020_completions.parquet", b"PAR1"),
        (".hydra/config.yaml", b"seed: [1"),
        (".hydra/hydra.yaml", b""),
        ("metrics.jsonl", b""),
    ],
)
def test_a_run_of_which_a_file_is_damaged_is_left_out(runs, file, content):
    (runs / "lens-1" / file).write_bytes(content)
    arms, oddities = load_arms([runs])
    assert [(arm.label, arm.seeds) for arm in arms] == [("grpo", [0, 1, 2, 3]), ("lens", [0, 2, 3])]
    assert oddities[0].startswith(f"{runs / 'lens-1'}: cannot be read (")


def test_all_that_is_not_alike_is_listed(runs):
    others = [make_run(runs / f"other{n}", "grpo", 9 + n, config={"trainer": {"max_steps": n}}) for n in range(10)]
    with pytest.raises(ConfigError) as error:
        load_arms([runs])
    assert str(error.value).count("differ in ['trainer.max_steps']") == 8
    assert all(str(folder) in str(error.value) for folder in others[:8])
    assert str(error.value).endswith("… (10)")


def test_everything_odd_is_named_and_left_out(runs, tmp_path):
    (runs / "lens-1" / "summary.json").unlink()
    (runs / "lens-2" / ".hydra" / "hydra.yaml").unlink()
    (runs / "lens-3" / "evaluations" / "step_000020.parquet").write_bytes(b"PAR1")
    (runs / "grpo-3" / "metrics.jsonl").write_text('{"train/global_step": 0, "eval')
    (runs / "empty").mkdir()
    (runs / "report").mkdir()
    other = make_run(
        runs / "other", "grpo", 0, config={"model": {"name_or_path": "/models/x"}}, choices={"experiment": "else"}
    )
    arms, oddities = load_arms([runs, tmp_path / "absent"])
    assert [(arm.label, arm.seeds) for arm in arms] == [("grpo", [0, 1, 2]), ("lens", [0]), ("grpo", [0])]
    assert f"{runs / 'empty'}: empty" in oddities
    assert f"{runs / 'lens-1'}: not finished, left out" in oddities
    assert f"{runs / 'lens-2'}: incomplete (no .hydra/hydra.yaml), left out" in oddities
    assert any(line.startswith(f"{runs / 'lens-3'}: cannot be read") for line in oddities)
    assert any(line.startswith(f"{runs / 'grpo-3'}: cannot be read") for line in oddities)
    assert f"{tmp_path / 'absent'}: no such folder" in oddities
    (told,) = [line for line in oddities if "reported separately" in line]
    assert "else · tiny · arithmetic" in told
    assert "model.name_or_path" in told
    assert str(other) in told
    assert "lens: no finished run with seed 1, 2 (2 of 3 seeds)" in oddities


def test_links_are_followed_and_circles_are_not(runs, tmp_path):
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "sweep").symlink_to(runs)
    (runs / "round").symlink_to(tmp_path / "view")
    arms, oddities = load_arms([tmp_path / "view"])
    assert [len(arm.runs) for arm in arms] == [4, 4]
    assert oddities == []


def test_arms_of_several_experiments_are_told_apart(tmp_path):
    for experiment in ("a", "b"):
        for objective in SKILL:
            folder = tmp_path / f"{experiment}-{objective}"
            make_run(folder, objective, 0, f"experiment={experiment}", choices={"experiment": experiment})
    make_run(tmp_path / "c", "uniform", 0, "experiment=c", choices={"experiment": "c"})
    arms, oddities = load_arms([tmp_path])
    assert "1 run(s) of another experiment than a, in separate arms: c (uniform)" in oddities
    by_label = {arm.label: arm for arm in arms}
    assert list(by_label) == ["a: grpo", "b: grpo", "a: lens", "b: lens", "uniform"]
    assert make_setting_title(arms) == "a + b + c · tiny · arithmetic"
    for label, base in (("a: lens", "a: grpo"), ("b: lens", "b: grpo"), ("uniform", "a: grpo"), ("a: grpo", None)):
        found = find_baseline(by_label[label], arms, "grpo")
        assert (found and found.label) == base


# --- what is refused -------------------------------------------------------------------------------------------------


def test_other_problems_under_one_config_are_refused(runs):
    file = runs / "lens-2" / "evaluations" / "step_000020.parquet"
    rows = pd.read_parquet(file)
    rows.loc[0, "id"] = "arithmetic/changed"
    rows.to_parquet(file)
    with pytest.raises(ConfigError, match="the same problems") as error:
        load_arms([runs])
    assert str(runs / "lens-2") in str(error.value)


def test_no_runs_are_refused_with_what_is_there(tmp_path):
    (tmp_path / "empty").mkdir()
    half = make_run(tmp_path / "half", "grpo", 0)
    (half / "summary.json").unlink()
    with pytest.raises(ConfigError, match="must be a folder with finished runs") as error:
        load_arms([tmp_path])
    for told in (f"{tmp_path / 'empty'}: empty", f"{half}: not finished"):
        assert told in str(error.value)


def test_metrics_are_read_as_they_were_written(runs):
    arms, _ = load_arms([runs])
    run = arms[0].runs[0]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert list(run.evaluations.index) == [0, 10, 20]
    assert run.evaluations.iloc[-1]["eval/arithmetic/pass@1"] == lines[-1]["eval/arithmetic/pass@1"]
    assert run.pass_at_ks[1].mean() / 100 == pytest.approx(lines[-1]["eval/arithmetic/pass@1"])
