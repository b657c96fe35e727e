"""What the tests of several processes share: gradients and runs that are compared with those of one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from lens.objectives import lens_advantages
from lens.problems.prompts import Prompt
from lens.sampling.rollouts import Rollouts
from lens.training.experience import Experience, make_experience
from tests.support.command_line import metrics_of, run
from tests.support.gradients import changed
from tests.support.losses import choices_of

# What rounding adds up to over some updates; metrics are means of numbers of size 1.
METRICS, WEIGHTS = 1e-4, 1e-4


def make_case(dtype: str, **choices: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The data type of the weights, and the choices of a loss and of a forward pass."""
    loss, forward_pass = changed(**choices)
    return dtype, choices_of(loss), asdict(forward_pass)


def found_by(
    experience: Experience,
    model: Path,
    cases: dict,
    logs: Path,
    folder: Path,
    several: int = 2,
    degree: int | None = None,
) -> list[dict]:
    """Gradients of the same rollouts, by one process and by several, so many of which share a copy of the weights."""
    found = []
    for processes in (1, several):
        job = {"experience": experience.state(), "model": str(model), "cases": cases, "degree": degree}
        torch.save(job, folder / "job.pt")
        result = run("tests/support/shared_gradient.py", folder, folder=logs, processes=processes)
        assert result.code == 0, result.stderr
        found.append(torch.load(folder / "found.pt", weights_only=True))
    return found


def assert_same_up_to_rounding(folder: Path, alone: Path) -> None:
    """The same answers, and numbers and weights that are as near as rounding lets them be."""
    assert_same_metrics(metrics_of(folder), metrics_of(alone))
    for file in (alone / "rollouts").iterdir():
        ours, theirs = pd.read_parquet(folder / "rollouts" / file.name), pd.read_parquet(file)
        pd.testing.assert_frame_equal(ours[["problem_id", "sample", "text"]], theirs[["problem_id", "sample", "text"]])
    for file in (alone / "evaluations").iterdir():
        pd.testing.assert_frame_equal(
            pd.read_parquet(folder / "evaluations" / file.name), pd.read_parquet(file), atol=METRICS
        )
    assert_same_tensors(folder, alone, "model.safetensors")


def assert_same_metrics(lines: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """All numbers are as near as rounding lets them be."""
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        assert line == pytest.approx(other, abs=METRICS, rel=METRICS)


def assert_same_tensors(folder: Path, alone: Path, file: str) -> None:
    """Those in a file of the last checkpoint are as near as rounding lets them be."""
    last = max(path.name for path in (alone / "checkpoints").iterdir())
    ours, theirs = (load_file(f / "checkpoints" / last / file) for f in (folder, alone))
    assert ours.keys() == theirs.keys()
    difference = max((ours[name] - theirs[name]).abs().max().item() for name in theirs)
    print(f"{file} of {last}: no number differs by more than {difference:.1e}")
    assert difference < WEIGHTS


def stored_experience(rows: pd.DataFrame) -> Experience:
    """Stored answers of groups of four, weighed by LENS."""
    ids, logprobs = (
        pad_sequence([torch.tensor(row) for row in rows[name]], batch_first=True)
        for name in ("completion_ids", "logprobs")
    )
    rollouts = Rollouts(
        prompts=[
            Prompt(name, tuple(map(int, ids))) for name, ids in zip(rows["problem_id"], rows["prompt_ids"], strict=True)
        ][::4],
        num_generations=4,
        completion_ids=ids,
        logprobs=logprobs.float(),
        lengths=torch.tensor(rows["length"].to_numpy()),
        finish_reasons=list(rows["finish_reason"]),
        texts=list(rows["text"]),
    )
    verdicts = list(rows["verdict"])
    return make_experience(rollouts, [None] * (len(rows) // 4), verdicts, lens_advantages, old_from="sampler")
