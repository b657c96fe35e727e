"""The published numbers, and our runs beside them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lens.reporting.export import to_latex, to_markdown
from lens.reporting.finding_runs import load_arms
from lens.reporting.paper import KS, TABLES, compare_with_paper, has_runs
from tests.support.run_folders import make_run

BY_NAME = {table.name: table for table in TABLES}
SHARED = os.environ.get("LENS_SHARED")


@pytest.mark.skipif(not SHARED, reason="LENS_SHARED does not name a folder with the paper's text")
def test_the_published_numbers_are_the_papers():
    text = (Path(SHARED) / "paper.md").read_text()
    for number in (1, 2, 3):
        lines = re.search(rf"^Table {number},.*?\n\n", text + "\n", re.M | re.S)[0].splitlines()[3:]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        ours = [
            [*([row.model] if number != 2 else []), row.algorithm, *(f"{value:.2f}" for value in row.published)]
            for row in BY_NAME[f"table{number}"].rows
        ]
        assert ours == cells


def test_rows_that_two_tables_share_are_the_same_numbers_and_the_same_runs():
    known = {}
    for table in TABLES[1:]:
        for row in table.rows:
            assert len(row.published) == len(KS)
            assert list(row.published) == sorted(row.published)
            assert known.setdefault((row.experiment, row.objective), row) == row
    assert len(known) == 6


def test_runs_that_are_not_there_are_missing_and_never_zero(tmp_path):
    make_run(tmp_path / "a", "grpo", 0)
    arms, _ = load_arms([tmp_path])
    assert not has_runs(arms)
    for table in TABLES:
        beside = compare_with_paper(table, arms)
        assert list(beside["numbers"]) == ["published", "ours"] * len(table.rows)
        ours = beside[beside["numbers"] == "ours"]
        assert (ours[[f"pass@{k}" for k in KS]] == "missing").all(axis=None)
        assert "missing" in to_markdown(beside)


@pytest.mark.parametrize(
    ("typed", "is_ours"),
    [
        ([], True),
        (["model.name_or_path=/models/llama", "dataset.math.path=/m.jsonl", "evaluation.sets.math.path=/t"], True),
        (
            ["sampler.tensor_parallel_size=2", "trainer.memory.max_tokens_per_microbatch=9", "tracking.wandb.mode=x"],
            True,
        ),
        (["hydra/launcher=submitit_slurm", "jobs=1", "outputs=/o"], True),
        (["trainer.max_steps=3"], False),
        (["model=tiny"], False),
        (["dataset=math"], False),
        (["evaluation.sets.math.size=60"], False),
        (["objective.alpha=1"], False),
    ],
)
def test_only_runs_as_the_paper_has_them_are_ours(tmp_path, typed, is_ours):
    """What all arms share decides as much as what one of them alone has."""
    choices = {"experiment": "paper/table1_llama", "model": "llama3.1_8b", "dataset": "math_dapo"}
    for objective in ("grpo", "lens"):
        overrides = ["experiment=paper/table1_llama", *typed]
        make_run(tmp_path / objective, objective, 0, *overrides, choices=choices, sets=("math",))
    beside = compare_with_paper(BY_NAME["table1"], load_arms([tmp_path])[0])
    assert [cell != "missing" for cell in beside["pass@1"].iloc[[1, 3]]] == [is_ours, is_ours]


def test_our_runs_stand_below_the_published_row(tmp_path):
    experiment = {"experiment": "paper/table1_llama", "model": "llama3.1_8b", "dataset": "math_dapo"}
    named = {"choices": experiment, "sets": ("math",)}
    for seed in (0, 1):
        make_run(tmp_path / f"grpo{seed}", "grpo", seed, "experiment=paper/table1_llama", **named)
        changed = {"trainer": {"max_steps": 3}}  # not the paper's run, whatever its objective
        make_run(
            tmp_path / f"lens{seed}",
            "lens",
            seed,
            "experiment=paper/table1_llama",
            "trainer.max_steps=3",
            config=changed,
            **named,
        )
    arms, _ = load_arms([tmp_path])
    assert has_runs(arms)
    beside = compare_with_paper(BY_NAME["table1"], arms)
    published, ours, _, lens = (row for _, row in beside.head(4).iterrows())
    assert published["pass@1"] == "54.09"
    assert ours["numbers"] == "ours (2 seeds)"
    final = 100 * arms[0].final()["eval/math/pass@1"]
    assert ours["pass@1"].mean == pytest.approx(final.mean())
    assert ours["pass@16"] == "missing"  # four samples a problem say nothing of sixteen
    assert lens["pass@1"] == "missing"
    latex = to_latex(beside, "100 % of it_")
    assert latex.count(r"\midrule") == 2  # below the head, and between the models
    assert r"\caption{100 \% of it\_}" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in body} == {len(beside.columns) - 1}
