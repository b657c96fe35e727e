"""What tests of reports share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.run_folders import SEEDS, SKILL, make_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two arms of four seeds."""
    for objective in SKILL:
        for seed in SEEDS:
            make_run(tmp_path / "runs" / f"{objective}-{seed}", objective, seed)
    return tmp_path / "runs"
