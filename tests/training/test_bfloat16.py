"""Runs that train weights in bfloat16 at the paper's learning rate: their masters learn what float32 learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.command_line import kept_weights, run, training

STEPS, LEARNING_RATE = 5, 1e-6
DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def runs(pupil, logs, tmp_path_factory) -> dict[str, Path]:
    """The folder of a run in each data type, with all its checkpoints. Both learn from the same answers."""
    folders = {dtype: tmp_path_factory.mktemp("runs") / dtype for dtype in DTYPES}
    keys = {"max_steps": STEPS, "learning_rate": LEARNING_RATE, "checkpoint_every": 1, "keep_checkpoints": STEPS}
    answers = ["sampler._target_=tests.support.faults.FirstPolicySampler", f"+sampler.folder={pupil}"]
    for dtype, folder in folders.items():
        command = training(pupil, folder.parent, *answers, "evaluation.every=0", f"model.dtype={dtype}", **keys)
        result = run(*command, f"hydra.run.dir={folder}", folder=logs)
        assert result.code == 0, result.stderr
    return folders


def own(folder: Path, step: int) -> dict[str, Tensor]:
    """The model's own weights after a step."""
    return load_file(folder / "checkpoints" / f"step_{step:06d}" / "model.safetensors")


def share_of(true: Tensor) -> float:
    return true.double().mean().item()


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


def test_the_masters_move_as_the_weights_of_a_run_in_float32(runs, pupil):
    first = load_file(pupil / "model.safetensors")
    moved = {}
    for dtype, folder in runs.items():
        start = flat({name: weight.to(getattr(torch, dtype)) for name, weight in first.items()})
        moved[dtype] = [flat(kept_weights(folder, step)) - start for step in (1, STEPS)]
    # AdamW's first update is the learning rate times the sign of the gradient, wherever there is a gradient.
    for once, _ in moved.values():
        assert once.abs().median() == pytest.approx(LEARNING_RATE, rel=0.02)
    # Later ones have the gradients' directions. Products in bfloat16 change those by some percent of their norm, which
    # turns the sign of the smallest ones alone. Lost updates would leave nothing to compare.
    (_, wide), (_, ours) = moved["float32"], moved["bfloat16"]
    cosine = torch.cosine_similarity(ours, wide, dim=0).item()
    shares = [share_of(way != 0) for way in (wide, ours)]
    print(f"of {len(ours)}, {shares[0]:.1%} of the float32 weights and {shares[1]:.1%} of the masters differ from the")
    print(f"first ones; the cosine between their ways is {cosine:.3f}")
    assert cosine > 0.8
    assert ours.norm() == pytest.approx(wide.norm().item(), rel=0.2)
    assert shares[1] == pytest.approx(shares[0], abs=0.01) and shares[0] > 0.8


def test_the_weights_are_the_rounded_masters_and_most_wait_for_more_updates(runs, pupil):
    masters, weights = kept_weights(runs["bfloat16"], STEPS), own(runs["bfloat16"], STEPS)
    assert masters.keys() == weights.keys()
    assert all(torch.equal(weights[name], master.bfloat16()) for name, master in masters.items())
    # Five updates of 1e-6 are below half of bfloat16's distance, about 2^-8 |w|, wherever |w| is well above 2.5e-3.
    start = {name: weight.bfloat16() for name, weight in load_file(pupil / "model.safetensors").items()}
    changed = share_of(flat(weights) != flat(start))
    print(f"{changed:.1%} of the weights in bfloat16 differ from the first ones")
    assert 0 < changed < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_share_of_changed_weights_is_that_between_two_checkpoints(runs, dtype):
    folder = runs[dtype]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {line["train/global_step"]: line for line in lines if "reward" in line}
    for step in range(2, STEPS + 1):
        pairs = {"weights/changed_share": own, "weights/master_changed_share": kept_weights}
        found = {name: share_of(flat(of(folder, step)) != flat(of(folder, step - 1))) for name, of in pairs.items()}
        if dtype == "float32":  # there is only one kind
            assert found["weights/changed_share"] == found.pop("weights/master_changed_share") > 0.8
        else:
            assert found["weights/changed_share"] < 0.05 and found["weights/master_changed_share"] > 0.8
        shares = {name: value for name, value in logged[step].items() if name.startswith("weights/")}
        assert shares == pytest.approx(found)
