"""One and two processes of TRL agree, though a group lies in both; and the example runs: make test-trl."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from lens.files import SOURCE

pytest.importorskip("trl", reason="TRL is not installed here: make test-trl")
from lens.objectives import lens_advantages
from tests.support.trl_process import SAMPLING
from tests.support.trl_runs import GENERATIONS

OBJECTIVES = ["lens", "lens_shuffled", "token_lens", "nsr", "spo"]


def run(*command: str | Path) -> str:
    """What a command of this Python prints; it must end well."""
    variables = os.environ | {"PYTHONPATH": str(SOURCE)}
    result = subprocess.run([sys.executable, *command], cwd=SOURCE, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def outcomes(tiny_folder, tmp_path_factory) -> dict[int, Path]:
    """The folders of what one and two processes saved."""
    folders = {number: tmp_path_factory.mktemp(f"processes-{number}") for number in (1, 2)}
    program = ("-m", "tests.support.trl_process", tiny_folder)
    run(*program, folders[1], *OBJECTIVES)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run(*torchrun, *program, folders[2], *OBJECTIVES, *SAMPLING)
    return folders


def load(folder: Path, objective: str) -> list[dict[str, Any]]:
    return [torch.load(file) for file in sorted(folder.glob(f"{objective}-*.pt"))]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_do_what_one_does(outcomes, objective):
    (alone,), both = load(outcomes[1], objective), load(outcomes[2], objective)
    assert len(both) == 2
    rows = [row for process in both for row in process["advantages"]]
    together = pad_sequence(rows, batch_first=True) if rows[0].dim() else torch.stack(rows)
    torch.testing.assert_close(together, alone["advantages"], rtol=0, atol=1e-6)
    assert torch.cat([process["kept"] for process in both]).tolist() == alone["kept"].tolist()
    for process in both:
        assert process["num_items"] == alone["num_items"]
        assert process["metrics"] == pytest.approx(alone["metrics"], abs=1e-6)
        torch.testing.assert_close(process["weights"], alone["weights"], rtol=0, atol=1e-5)
    assert 0 < alone["metrics"]["groups/frac_negative"] < 1 and alone["advantages"].count_nonzero() > 4


@pytest.mark.parametrize(("name", "passes"), [("sampled", 0), ("twice-sampled", 1)])
def test_two_processes_agree_on_where_log_probabilities_come_from(outcomes, name, passes):
    """What one of them did not see while it sampled, both compute."""
    both = load(outcomes[2], name)
    assert [process["passes"] for process in both] == [passes] * 2
    correct, confidence = (
        torch.tensor(both[0][what] + both[1][what]).view(-1, GENERATIONS) for what in ("correct", "confidence")
    )
    expected = lens_advantages(correct == 1, confidence).flatten()
    found = torch.cat([process["advantages"] for process in both])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.count_nonzero() > 4


def test_the_example_is_short_and_trains(tiny_folder, tmp_path):
    example = SOURCE / "examples" / "trl_lens.py"
    assert len(example.read_text().splitlines()) < 60
    said = run(example, tiny_folder, "--steps", "1", "--output", tmp_path)
    assert re.search(r"'groups/frac_negative': '?1", said)
    assert (tmp_path / "checkpoint-1").is_dir()
