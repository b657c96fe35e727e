"""The league: differences at equal steps, tokens and time, p-values for many comparisons, and the sentence on top."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lens.reporting.finding_runs import load_arms
from lens.reporting.intervals import Difference
from lens.reporting.league import compare_at_equal, correct_by_holm, count_seeds, league_sentence, league_table, p_value
from lens.reporting.pairing import pair_runs
from lens.reporting.report import report
from lens.reporting.tables import difference_table
from tests.support.run_folders import SEEDS, make_run

ARMS = ("grpo", "lens", "uniform", "ngrpo", "max_rl")


def spend(folder: Path, tokens: int, seconds: float) -> None:
    """Let each step of a run take so many tokens and seconds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "time/step_s" in line:
            line |= {"time/step_s": seconds, "total/tokens_generated": tokens * line["train/global_step"]}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("league")
    for objective in ARMS:
        for seed in SEEDS:
            folder = make_run(home / f"{objective}-{seed}", objective, seed)
            if objective == "lens":
                spend(folder, tokens=100, seconds=2.0)
    return home


def test_holms_correction_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1; none below the one before it."""
    assert correct_by_holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert correct_by_holm([0.9, 0.5]) == [1.0, 1.0]


def test_the_p_value_is_that_of_a_paired_t_test():
    values = [1.0, 2.0, 4.0, 1.5]
    t = np.mean(values) / (np.std(values, ddof=1) / 2)
    assert p_value(values) == pytest.approx(2 * stats.t.sf(t, 3))
    assert p_value([1.0, 2.0]) == p_value([1.0, 1.0, 1.0]) == 1


def test_the_seeds_for_one_point_follow_from_the_spread():
    """(1.96 + 0.8416)^2 = 7.849; a standard deviation of 2.7 points gives 57.2."""
    values = np.array([-1, 0, 1]) * 2.7
    assert np.std(values, ddof=1) == pytest.approx(2.7)
    assert (count_seeds(values), count_seeds(values / 100), count_seeds(values[:2])) == (58, 3, "-")


def test_equal_time_compares_where_the_cheaper_one_ends(runs):
    """A step of lens takes twice as long: after 20 s it is at its evaluation of step 10."""
    arms = {arm.label: arm for arm in load_arms([runs])[0]}
    pairs = pair_runs(arms["lens"], arms["grpo"])
    metric = "eval/arithmetic/pass@1"
    by_hand = [100 * (ours.evaluations[metric][10] - base.evaluations[metric][20]) for ours, base in pairs]
    found = compare_at_equal(pairs, metric, "time")
    assert (found.mean, found.seeds) == (pytest.approx(np.mean(by_hand)), 4)
    at_the_end = [100 * (ours.evaluations[metric][20] - base.evaluations[metric][20]) for ours, base in pairs]
    assert compare_at_equal(pairs, metric, "tokens").mean == pytest.approx(np.mean(at_the_end))


def test_the_table_ranks_the_arms_by_the_numbers_of_the_table_of_differences(runs):
    arms = load_arms([runs])[0]
    differences = difference_table(arms, "grpo")
    table = league_table(arms, "grpo", differences)
    assert sorted(table["arm"]) == sorted(set(ARMS) - {"grpo"})
    means = [difference.mean for difference in table["pass@1"]]
    assert means == sorted(means, reverse=True)
    for _, row in table.iterrows():
        same = differences[(differences["arm"] == row["arm"]) & (differences["part"] == "all")].iloc[0]
        assert (row["pass@1"], row["pass@4"]) == (same["pass@1"], same["pass@4"])
    raw = [p_value(row[name].values) for _, row in table.iterrows() for name in ("pass@1", "pass@4")]
    found = [row[f"{name} p"] for _, row in table.iterrows() for name in ("pass@1", "pass@4")]
    assert found == pytest.approx(correct_by_holm(raw), rel=0.051)  # two digits
    assert league_table(arms[:3], "grpo", difference_table(arms[:3], "grpo")).empty  # too few to be a league


@pytest.mark.parametrize(
    ("p", "starts"), [(0.01, "Of 2 arms, new, +2.0 ± 0.5"), (0.2, "None of 2 arms is surely better than grpo; the")]
)
def test_the_sentence_says_what_won_by_how_much_and_how_surely(p, starts):
    best, worst = (Difference(mean, 0.5, 16, mean - 1, mean + 1, ()) for mean in (2.0, -1.0))
    table = pd.DataFrame({"arm": ["new", "old"], "pass@1": [best, worst], "pass@1 p": [p, 1.0]})
    sentence = league_sentence(table, "grpo")
    assert sentence.startswith(starts)
    assert "points above grpo in pass@1 at equal steps on 16 paired seeds" in sentence
    assert f"p = {p:.2g} after Holm's correction for 2 comparisons" in sentence


def test_a_report_of_many_arms_begins_with_the_league(runs, tmp_path, capsys):
    page = report([runs], "grpo", tmp_path, completions=0).read_text()
    printed = capsys.readouterr().out
    (sentence,) = re.findall(r'<p class="lead"><b>(.*?)</b></p>', page)
    assert re.search(r"(Of|None of) 4 arms", sentence)
    assert page.index(sentence) < page.index("finished runs")
    assert "points above grpo in pass@1" in printed
    table = pd.read_csv(tmp_path / "league.csv")
    assert len(table) == 4 and {"pass@1 p", "at equal tokens", "at equal time", "s/step"} <= set(table.columns)
    assert (tmp_path / "league_of_objectives.png").stat().st_size > 10_000
