"""Reports on run folders that are made here: tables, files, figures, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lens.errors import ConfigError
from lens.reporting.curves import over_seeds
from lens.reporting.finding_runs import load_arms
from lens.reporting.report import report
from lens.reporting.tables import accuracy_table, difference_table, find_parts, gain_table
from lens.runs.run import FAILURE
from lens.terminal import show_table
from tests.support.run_folders import SEEDS, SKILL, make_run


def accuracies(runs: Path, objective: str, levels: set[int], k: int, step: int = 20) -> np.ndarray:
    """Percent correct of each seed, from the stored evaluations alone."""
    found = []
    for seed in SEEDS:
        rows = pd.read_parquet(runs / f"{objective}-{seed}" / "evaluations" / f"step_{step:06d}.parquet")
        wrong = (4 - rows.loc[rows["level"].isin(levels), "correct"]).to_numpy()
        all_wrong = np.prod([(wrong - drawn).clip(min=0) / (4 - drawn) for drawn in range(k)], axis=0)
        found.append(100 * (1 - all_wrong).mean())
    return np.array(found)


PARTS = {"all": {1, 2, 3, 4, 5}, **{f"Level {level}": {level} for level in range(1, 6)}, "Levels 4-5": {4, 5}}


# --- tables ----------------------------------------------------------------------------------------------------------


def test_accuracies_and_their_intervals_are_those_of_the_stored_evaluations(runs):
    arms, oddities = load_arms([runs])
    assert oddities == []
    table = accuracy_table(arms).set_index(["part", "arm"])
    assert set(table.index) == {(part, arm) for part in PARTS for arm in ("before training", *SKILL)}
    for (part, arm), row in table.drop("before training", level="arm").iterrows():
        assert row["seeds"] == 4
        for k in (1, 2, 4):
            values = accuracies(runs, arm, PARTS[part], k)
            cell, scale = row[f"pass@{k}"], max(stats.sem(values), 1e-12)
            interval = stats.t.interval(0.95, df=3, loc=values.mean(), scale=scale)
            assert cell.mean == pytest.approx(values.mean(), abs=1e-9)
            assert (cell.mean - cell.half_width, cell.mean + cell.half_width) == pytest.approx(interval, abs=1e-9)


def test_differences_are_paired_by_seed(runs):
    arms, _ = load_arms([runs])
    table = difference_table(arms, "grpo").set_index("part")
    assert list(table.index) == list(PARTS)
    decided = []
    for part, row in table.iterrows():
        for k in (1, 2, 4):
            ours, base = (accuracies(runs, arm, PARTS[part], k) for arm in ("lens", "grpo"))
            test = stats.ttest_rel(ours, base)
            interval, cell = test.confidence_interval(0.95), row[f"pass@{k}"]
            assert (cell.mean - cell.half_width, cell.mean + cell.half_width) == pytest.approx(interval, abs=1e-9)
            assert cell.decided == (test.pvalue < 0.05)
            decided.append(cell.decided)
    assert True in decided
    assert False in decided
    back = difference_table(arms, "lens").set_index("part")
    assert back.loc["all", "pass@1"].mean == pytest.approx(-table.loc["all", "pass@1"].mean)


def test_gains_are_those_over_the_first_evaluation_of_the_same_run(runs):
    table = gain_table(load_arms([runs])[0]).set_index(["part", "arm"])
    for (part, arm), row in table.iterrows():
        for k in (1, 2, 4):
            after, before = (accuracies(runs, arm, PARTS[part], k, step) for step in (20, 0))
            interval, cell = stats.ttest_rel(after, before).confidence_interval(0.95), row[f"pass@{k}"]
            assert (cell.mean - cell.half_width, cell.mean + cell.half_width) == pytest.approx(interval, abs=1e-9)


def test_only_seeds_that_both_arms_have_are_paired(runs):
    (runs / "lens-1" / "summary.json").unlink()
    arms, oddities = load_arms([runs])
    assert oddities == [
        f"{runs / 'lens-1'}: not finished, left out",
        "lens: no finished run with seed 1 (1 of 4 seeds)",
    ]
    row = difference_table(arms, "grpo").set_index("part").loc["all"]
    assert row["seeds"] == 3
    kept = [0, 2, 3]
    pairs = (accuracies(runs, "lens", PARTS["all"], 1) - accuracies(runs, "grpo", PARTS["all"], 1))[kept]
    assert row["pass@1"].mean == pytest.approx(pairs.mean())


def test_several_sets_are_told_apart_and_the_baseline_comes_first(tmp_path):
    for objective in ("lens", "grpo"):
        make_run(tmp_path / objective, objective, 0, sets=("math500", "arithmetic"))
    arms, _ = load_arms([tmp_path])
    assert [arm.label for arm in arms] == ["grpo", "lens"]
    parts = find_parts(arms[0])
    assert parts["math500: all"] == "eval/math500"
    assert parts["arithmetic: Levels 4-5"] == "eval/arithmetic/levels_4-5"
    assert len(parts) == 14


def test_the_curve_over_seeds_is_a_mean_with_a_t_band():
    values = [{0: 1.0, 10: 2.0, 20: 5.0}, {0: 2.0, 10: 4.0}, {0: 6.0, 10: 3.0, 20: 1.0}]
    series = [pd.Series(of_run) for of_run in values]
    steps, mean, half = over_seeds(series)
    assert list(steps) == [0, 10]
    np.testing.assert_allclose(mean, [3.0, 3.0])
    np.testing.assert_allclose(half, stats.t.ppf(0.975, 2) * np.array([np.std([1, 2, 6], ddof=1), 1.0]) / 3**0.5)


# --- the report ------------------------------------------------------------------------------------------------------


def test_a_report_prints_tables_and_writes_them_with_figures(runs, tmp_path, capsys):
    (runs / "lens-3" / "metrics.jsonl").unlink()  # as a copy that broke off leaves it
    report([runs], "grpo", tmp_path / "report", completions=0)
    printed = capsys.readouterr().out
    assert f"note: {runs / 'lens-3'}: incomplete (no metrics.jsonl), left out" in printed
    assert "note: lens: no finished run with seed 3" in printed
    for text in ("Accuracy on held-out problems", "Difference to grpo in points", "Signal of negative groups"):
        assert text in printed
    accuracy = pd.read_csv(tmp_path / "report" / "accuracy.csv").set_index(["part", "arm"])
    values = accuracies(runs, "grpo", PARTS["Levels 4-5"], 2)
    row = accuracy.loc[("Levels 4-5", "grpo")]
    assert row["pass@2"] == pytest.approx(values.mean())
    assert row["pass@2 half-width"] == pytest.approx(stats.t.ppf(0.975, 3) * stats.sem(values))
    assert f"{values.mean():.1f} ± {row['pass@2 half-width']:.1f}" in printed
    before = accuracies(runs, "grpo", PARTS["all"], 1, step=0)
    assert accuracy.loc[("all", "before training"), "pass@1"] == pytest.approx(before.mean())
    markdown = (tmp_path / "report" / "difference.md").read_text().splitlines()
    assert markdown[0].split("|")[1:4] == [" part ", " arm ", " seeds "]
    assert len(markdown) == 2 + len(PARTS)
    signal = pd.read_csv(tmp_path / "report" / "signal.csv").set_index("arm")
    assert signal.loc["grpo", "share of |A|"] == 0
    single = pd.read_csv(tmp_path / "report" / "runs.csv")
    assert len(single) == (4 + 3) * len(PARTS)
    listed = single[(single["arm"] == "grpo") & (single["part"] == "Levels 4-5")].set_index("seed")["pass@2"]
    assert listed.to_numpy() == pytest.approx(values, abs=5e-4)
    assert signal.loc["lens", "share of |A|"] == pytest.approx(2 * signal.loc["lens", "share of gradient"], rel=0.5)
    assert signal.loc["lens", "tokens trained"] == pytest.approx(60)
    page, verdict = printed.splitlines()[-2:]
    assert page == f"page:    {tmp_path / 'report' / 'index.html'}"
    values = accuracies(runs, "lens", PARTS["all"], 1)[:3] - accuracies(runs, "grpo", PARTS["all"], 1)[:3]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert verdict.startswith(f"lens over grpo: {values.mean():+.1f} points of pass@1, 95 % intervals [{low:+.1f}, ")
    assert verdict.endswith(f"{'not decided' if low < 0 < high else 'higher, decided'} on 3 paired seeds")
    for name in ("accuracy", "difference", "signal", "compute", "results", "table1", "table2", "table3"):
        latex = (tmp_path / "report" / f"{name}.tex").read_text()
        assert latex.count(r"\toprule") == 1
        assert all((tmp_path / "report" / f"{name}.{kind}").exists() for kind in ("csv", "md"))
    figures = ("accuracy_over_steps", "negative_groups_over_steps", "negative_groups_by_level", "pass_at_k")
    for name in (*figures, "signal_of_negative_groups", "accuracy_over_compute"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "report" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_one_arm_is_reported_without_differences(tmp_path, capsys):
    for seed in SEEDS:
        make_run(tmp_path / "runs" / str(seed), "lens", seed)
    report([tmp_path / "runs"], None, tmp_path / "report", completions=0)
    printed = capsys.readouterr().out
    assert "Accuracy" in printed
    assert "Difference" not in printed and "paired seed" not in printed


def test_runs_that_never_measured_the_gradients_are_reported(tmp_path, capsys):
    for objective in SKILL:
        folder = make_run(tmp_path / "runs" / objective, objective, 0)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("groups/grad_norm_share_negative", None)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report([tmp_path / "runs"], "grpo", tmp_path / "report", completions=0)
    assert "Signal of negative groups" in capsys.readouterr().out


def test_several_folders_make_one_report_and_evaluations_are_no_runs(tmp_path):
    for objective in SKILL:
        make_run(tmp_path / objective / "sweeps" / "a", objective, 0)
    evaluation = tmp_path / "lens" / "evaluations" / "now"
    (evaluation / ".hydra").mkdir(parents=True)
    (evaluation / ".hydra" / "config.yaml").touch()
    for name in ("summary.json", "evaluation.parquet"):
        (evaluation / name).touch()
    arms, oddities = load_arms([tmp_path / "grpo", tmp_path / "lens"])
    assert [arm.label for arm in arms] == ["grpo", "lens"]
    assert oddities == []


def test_a_report_names_what_is_odd_and_its_tables_are_those_of_the_rest(runs, tmp_path, capsys):
    whole = report([runs], "grpo", tmp_path / "whole", completions=0)
    half = make_run(runs / "lens-8", "lens", 8)
    (half / "summary.json").unlink()
    ended = make_run(runs / "lens-9", "lens", 9)
    (ended / "summary.json").unlink()
    (ended / FAILURE).write_text("step 3: entropy 0.9 > trainer.max_entropy=0.6\n")
    (make_run(runs / "else", "grpo", 0, choices={"experiment": "else"}, config={"model": {"name_or_path": "x"}}))
    (runs / "lens-0" / "provenance.json").write_text("{")
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    report([runs, tmp_path / "empty"], "grpo", tmp_path / "odd", completions=0)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert f"note: {half}: not finished, left out" in notes
    assert f"note: {ended}: not finished (step 3: entropy 0.9 > trainer.max_entropy=0.6), left out" in notes
    assert f"note: {tmp_path / 'empty'}: empty" in notes
    assert any("else · tiny · arithmetic: reported separately" in note for note in notes)
    for table in ("accuracy", "difference", "signal"):
        (same,) = (tmp_path / "odd").glob(f"no_experiment*/{table}.csv")
        assert same.read_text() == (whole.parent / f"{table}.csv").read_text()


def test_an_unknown_baseline_is_refused_before_anything_is_written(runs, tmp_path):
    with pytest.raises(ConfigError, match="must be one of grpo, lens") as error:
        report([runs], "ppo", tmp_path / "report", completions=0)
    assert (error.value.key, error.value.value) == ("baseline", "ppo")
    assert not (tmp_path / "report").exists()


def test_brackets_in_a_title_are_printed(capsys):
    show_table("[over problems]", pd.DataFrame({"part": ["all"], "pass@1": ["1 [0, 2]"]}))
    printed = capsys.readouterr().out
    assert "[over problems]" in printed
    assert "1 [0, 2]" in printed
