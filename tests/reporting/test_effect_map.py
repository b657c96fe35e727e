"""The map on run folders that are made here: who is held against whom, and its numbers from the stored evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from lens.reporting.effect_map import MIDDLE, draw_map, map_table, name_cell, plot_map
from lens.reporting.finding_runs import load_arms
from lens.reporting.pairing import split_by_baseline
from lens.reporting.report import make_title, report, spans_cells
from tests.support.run_folders import SEEDS, make_run

LENS = "lens.objectives.lens_advantages"
OBJECTIVES = {
    "grpo": {"_target_": "lens.objectives.grpo_advantages"},
    "lens": {"_target_": LENS, "alpha": 0.25},
    "lens_strong": {"_target_": LENS, "alpha": 4.0},
    "uniform": {"_target_": "lens.objectives.uniform_advantages", "alpha": 4.0},
}
# Experiment, objective, overrides, and what they change in the config.
ARMS = [
    ("tiny_map", "grpo", [], {}),
    ("tiny_map", "lens", [], {}),
    ("tiny_map", "lens_strong", [], {}),
    ("tiny_map_alpha", "lens", ["objective.alpha=16"], {"objective": {"_target_": LENS, "alpha": 16}}),
    ("tiny_map_generations", "grpo", ["trainer.rollouts.num_generations=16"], {"trainer": {"num_generations": 16}}),
    ("tiny_map_generations", "lens", ["trainer.rollouts.num_generations=16"], {"trainer": {"num_generations": 16}}),
    ("tiny_map_penalty", "uniform", ["objective.alpha=4"], {}),
    ("tiny_map_entropy", "grpo", ["loss.entropy_coef=0.01"], {"trainer": {"entropy_coef": 0.01}}),
    ("tiny_map_levels", "grpo", ["dataset.arithmetic.levels=[4,5]"], {"dataset": {"levels": [4, 5]}}),
    ("tiny_map_levels", "lens", ["dataset.arithmetic.levels=[4,5]"], {"dataset": {"levels": [4, 5]}}),
]
# Cell, arm, against: the place of each in ARMS.
ROWS = {
    (MIDDLE, "lens", "grpo"): (1, 0),
    (MIDDLE, "lens alpha=16", "grpo"): (3, 0),
    (MIDDLE, "lens_strong", "grpo"): (2, 0),
    (MIDDLE, "uniform alpha=4", "grpo"): (6, 0),
    ("arithmetic.levels=[4,5]", "lens", "grpo"): (9, 8),
    ("num_generations=16", "lens", "grpo"): (5, 4),
    (MIDDLE, "lens", "grpo entropy_coef=0.01"): (1, 7),
    (MIDDLE, "lens_strong", "grpo entropy_coef=0.01"): (2, 7),
    (MIDDLE, "lens_strong", "uniform alpha=4"): (2, 6),  # and not lens, whose alpha is another
}


def folder_of(runs: Path, number: int, seed: int) -> Path:
    return runs / f"{number}-{ARMS[number][1]}-{seed}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    for number, (experiment, objective, overrides, changed) in enumerate(ARMS):
        for seed in SEEDS:
            make_run(
                folder_of(runs, number, seed),
                objective,
                seed,
                f"experiment={experiment}",
                *overrides,
                config={"objective": OBJECTIVES[objective], **changed},
                choices={"experiment": experiment},
            )
    return runs


@pytest.fixture(scope="module")
def table(runs) -> pd.DataFrame:
    return map_table(load_arms([runs])[0], "grpo")


def evaluated(runs: Path, number: int, seed: int, k: int) -> float:
    """pass@k in percent after training."""
    rows = pd.read_parquet(folder_of(runs, number, seed) / "evaluations" / "step_000020.parquet")
    wrong = (4 - rows["correct"]).to_numpy()
    return 100 * (1 - np.prod([(wrong - drawn).clip(min=0) / (4 - drawn) for drawn in range(k)], axis=0)).mean()


def logged(runs: Path, number: int, seed: int) -> pd.DataFrame:
    lines = (folder_of(runs, number, seed) / "metrics.jsonl").read_text().splitlines()
    return pd.DataFrame([line for line in map(json.loads, lines) if "entropy" in line])


def test_each_arm_is_held_against_its_own_baseline_and_lens_against_each_control(table):
    assert list(zip(table["cell"], table["arm"], table["against"], strict=True)) == list(ROWS)
    assert (table["seeds"] == len(SEEDS)).all()
    assert spans_cells(table)


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_the_numbers_of_a_row_are_those_of_the_run_folders(runs, table, row):
    ours, other = ROWS[row]
    (found,) = (r for r in table.to_dict("records") if (r["cell"], r["arm"], r["against"]) == row)
    for k in (1, 4):
        pairs = [[evaluated(runs, number, seed, k) for seed in SEEDS] for number in (ours, other)]
        interval, cell = stats.ttest_rel(*pairs).confidence_interval(0.95), found[f"pass@{k}"]
        assert (cell.mean - cell.half_width, cell.mean + cell.half_width) == pytest.approx(interval, abs=1e-9)
        assert cell.low < cell.mean < cell.high
    assert "pass@2" not in found
    of_arm, of_other = ([logged(runs, number, seed) for seed in SEEDS] for number in (ours, other))
    negative = np.mean([100 * m["groups/frac_negative"][:10].mean() for m in of_arm])
    assert found["negative at start"].mean == pytest.approx(negative)
    share = np.mean([100 * m["groups/grad_norm_share_negative"].mean() for m in of_arm])
    assert found["share of gradient"].mean == pytest.approx(share)
    assert found["entropy"].mean == pytest.approx(np.mean([m["entropy"][-10:].mean() for m in of_arm]))
    assert found["entropy against"].mean == pytest.approx(np.mean([m["entropy"][-10:].mean() for m in of_other]))


def test_only_seeds_that_both_have_are_paired(runs, tmp_path):
    for number, seeds in ((0, (0, 1, 2)), (1, (1, 2, 3)), (4, (0,)), (5, (1,))):
        for seed in seeds:
            (tmp_path / f"{number}-{seed}").symlink_to(folder_of(runs, number, seed))
    found = map_table(load_arms([tmp_path])[0], "grpo")
    assert found[["cell", "seeds"]].to_numpy().tolist() == [[MIDDLE, 2]]  # and none in the cell without a pair
    assert not spans_cells(found)


def test_the_figure_has_a_line_for_each_row(table, tmp_path):
    axes = Figure().subplots()
    plot_map(axes, table, "pass@1")
    points = [line.get_xydata().tolist() for line, _, _ in axes.containers]
    assert points == [[[cell.mean, place]] for place, cell in enumerate(table["pass@1"])]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"{cell}: {arm} − {against} (4)" for cell, arm, against in ROWS]
    assert axes.yaxis_inverted()
    png = draw_map(table, tmp_path / "map")
    assert png.stat().st_size > 5000
    assert png.with_suffix(".pdf").exists()


def test_the_report_has_the_map_as_a_table_a_figure_and_a_section_of_the_page(runs, tmp_path, capsys):
    report([runs], "grpo", tmp_path, completions=0)
    printed = capsys.readouterr().out
    assert "When does it help? Points above grpo" in printed
    written = pd.read_csv(tmp_path / "map.csv").set_index(["cell", "arm", "against"])
    assert list(written.index) == list(ROWS)
    expected = np.mean([evaluated(runs, 5, seed, 1) - evaluated(runs, 4, seed, 1) for seed in SEEDS])
    assert written.loc[("num_generations=16", "lens", "grpo"), "pass@1"] == pytest.approx(expected)
    assert {"pass@1 half-width", "pass@1 low", "pass@1 high", "pass@1 verdict"} <= set(written.columns)
    assert (tmp_path / "map_of_differences.png").stat().st_size > 5000
    page = (tmp_path / "index.html").read_text()
    assert page.index(">Map</h2>") < page.index("num_generations=16</h2>")
    assert f"tables:  {tmp_path}/map.{{csv,md,tex}}" in printed.splitlines()


def test_a_section_is_a_baseline_with_what_is_compared_with_it(runs):
    arms, _ = load_arms([runs])
    members = [arm for arm in arms if arm.setting == arms[0].setting]
    parts = split_by_baseline(members, "grpo")
    assert sorted(arm.label for part in parts for arm in part) == sorted(arm.label for arm in members)
    middle, larger = parts
    assert [arm.label for arm in larger] == ["grpo num_generations=16", "lens num_generations=16"]
    assert make_title(larger, arms) == "tiny_map_generations · tiny · arithmetic · num_generations=16"
    assert "grpo entropy_coef=0.01" in [arm.label for arm in middle]
    assert split_by_baseline(members, None) == [members]
    others = [arm for arm in arms if arm.setting != arms[0].setting]
    assert split_by_baseline(others, "grpo") == [others]
    assert {name_cell(arm, arms) for arm in others} == {"arithmetic.levels=[4,5]"}
