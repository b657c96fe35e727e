"""A report over a league's many runs."""

from __future__ import annotations

import time

import pytest

from lens.reporting.report import report
from tests.support.run_folders import make_run

ARMS = ("grpo", "lens", "uniform", "ngrpo", "nsr", "psr", "spo", "max_rl", "rl_zvp", "dr_grpo")


@pytest.mark.slow
def test_a_report_over_five_hundred_runs_takes_under_a_minute(tmp_path):
    for arm in ARMS:
        for seed in range(50):
            make_run(tmp_path / "runs" / f"{arm}-{seed}", arm, seed)
    started = time.perf_counter()
    page = report([tmp_path / "runs"], "grpo", tmp_path / "report", completions=0)
    seconds = time.perf_counter() - started
    print(f"{seconds:.1f} s")
    assert "500 finished runs" in page.read_text()
    assert seconds < 60
