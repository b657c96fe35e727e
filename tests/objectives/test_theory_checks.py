"""The table of checks finds the theory true and a false one false; figure 4 is what the formula says."""

from __future__ import annotations

import pytest

from lens.commands.theory import check_theory
from lens.objectives import theory_checks
from lens.objectives.negative_group_checks import NEGATIVE_GROUP_CHECKS
from lens.objectives.theory_checks import CHECKS
from tests.support.command_line import run


def test_every_statement_holds():
    table = check_theory(num_spaces=30)
    assert table["check"].tolist() == list(CHECKS)
    assert table["largest error"].astype(float).max() < 1e-12


@pytest.mark.parametrize(
    ("name", "false"),
    [
        ("multiplier", lambda pi, r, d, rho=1.0: r - (1 - r) * pi / (d * rho)),
        ("j_mle", lambda pi, r, d, rho=1.0: (pi * (r - pi / (d * rho) * (1 - r))).sum()),
        ("w", lambda z: z / 2),
        ("log_likelihood", lambda pi, r, d, rho=1.0: r * pi.log()),
    ],
)
def test_a_false_statement_is_seen(monkeypatch, name, false):
    monkeypatch.setattr(theory_checks, name, false)
    assert check_theory(num_spaces=10)["largest error"].astype(float).max() > 1e-3


def test_the_script_prints_the_table_and_draws_the_figures(tmp_path):
    result = run("scripts/theory.py", f"outputs={tmp_path}", "num_spaces=3", folder=tmp_path / "logs")
    assert result.code == 0, result.stderr
    assert all(name in result.stdout for name in CHECKS)
    assert all(name in result.stdout for name in NEGATIVE_GROUP_CHECKS)
    figures = {f"{name}.{kind}" for name in ("figure_4_w", "negative_groups") for kind in ("png", "pdf")}
    assert {file.name for file in (tmp_path / "theory").iterdir()} == figures
    refused = run("scripts/theory.py", f"outputs={tmp_path}", "num_answers=2", folder=tmp_path / "logs")
    assert refused.code == 2 and refused.one_line() == "error: num_answers=2: must be an integer >= 4"
