"""Which data type ``auto`` stands for, and what is said where bfloat16 is slow."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from lens.models import precision
from lens.models.precision import find_bfloat16_unit, resolve_autocast, settle_precision
from lens.runs.provenance import describe_provenance
from tests.support.command_line import environment, run, training

# What oneDNN may use: with this, a processor that multiplies bfloat16 is like one that does not.
WITHOUT_BFLOAT16 = environment(ONEDNN_MAX_CPU_ISA="AVX2")


def asking(autocast: str | None, dtype: str = "float32", **others: dict[str, str]) -> DictConfig:
    return OmegaConf.create({"trainer": {"memory": {"autocast": autocast}}, "model": {"dtype": dtype}, **others})


@pytest.mark.parametrize(
    ("autocast", "dtype", "multiplied", "expected"),
    [
        ("auto", "float32", True, "bfloat16"),
        ("auto", "float32", False, None),
        ("auto", "bfloat16", True, None),
        ("auto", "float64", True, None),
        ("bfloat16", "float32", False, "bfloat16"),
        (None, "float32", True, None),
    ],
)
def test_auto_is_bfloat16_where_it_is_multiplied_and_weights_are_float32(autocast, dtype, multiplied, expected):
    assert resolve_autocast(autocast, dtype, multiplied) == expected


@pytest.mark.skipif(
    torch.cuda.is_available() or platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(),
    reason="needs a processor of the x86 family under Linux, and no GPU",
)
def test_the_processor_is_believed():
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    forbidden = os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2"
    assert (find_bfloat16_unit() is not None) == (bool(flags & {"avx512_bf16", "amx_bf16"}) and not forbidden)
    machine = describe_provenance()["machine"]
    assert machine["multiplies_bfloat16"] == find_bfloat16_unit()
    assert machine["kernels"] == torch.backends.cpu.get_cpu_capability()


@pytest.mark.parametrize(("unit", "autocast", "dtype"), [("amx_bf16", "bfloat16", "bfloat16"), (None, None, "float32")])
def test_what_auto_stands_for_is_said_in_a_line(monkeypatch, caplog, unit, autocast, dtype):
    monkeypatch.setattr(precision, "find_bfloat16_unit", lambda: unit)  # no machine is both
    config = asking("auto")
    with caplog.at_level(logging.INFO):
        settle_precision(config)
    assert config.trainer.memory.autocast == autocast
    (line,) = caplog.messages
    assert line.startswith(f"trainer.memory.autocast=auto: {autocast or 'null'}")
    assert (unit or "nothing here") in line
    config = OmegaConf.create({"model": {"dtype": "auto"}, "engine": {"dtype": "${model.dtype}"}})
    settle_precision(config)
    assert config.engine.dtype == dtype


@pytest.mark.parametrize("unit", ["amx_bf16", None])
@pytest.mark.parametrize("begun", ["bfloat16", None])
def test_a_stored_run_keeps_its_choice_on_any_machine(monkeypatch, caplog, unit, begun):
    monkeypatch.setattr(precision, "find_bfloat16_unit", lambda: unit)
    monkeypatch.setattr(precision, "measure_slowdown", lambda: 1.0)
    config = asking("auto")
    with caplog.at_level(logging.INFO):
        settle_precision(config, OmegaConf.to_container(asking(begun)))
    assert config.trainer.memory.autocast == begun
    (said,) = caplog.records
    differs = (unit is not None) != (begun is not None)
    assert (said.levelno == logging.WARNING) == differs == ("a new run would take" in said.getMessage())


def test_bfloat16_that_crawls_is_warned_of_with_what_was_measured(monkeypatch, caplog):
    monkeypatch.setattr(precision, "find_bfloat16_unit", lambda: None)
    for ratio, warned in ((80.0, True), (1.5, False)):
        monkeypatch.setattr(precision, "measure_slowdown", lambda ratio=ratio: ratio)
        caplog.clear()
        settle_precision(asking("bfloat16", "bfloat16", sampler={"dtype": "float32"}))
        assert [m.split(": a matrix product in bfloat16 takes 80 times")[0] for m in caplog.messages] == (
            ["trainer.memory.autocast=bfloat16, model.dtype=bfloat16"] if warned else []
        )
        caplog.clear()
        settle_precision(asking(None))
        assert not caplog.messages


def test_measuring_draws_nothing_and_changes_no_threads():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    assert precision.measure_slowdown() > 0
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


# --- from the command line ---


def autocast_of(folder: Path) -> list[str | None]:
    """What a run's stored configs have: that of .hydra, of the provenance."""
    stored = OmegaConf.load(folder / ".hydra" / "config.yaml"), json.loads((folder / "provenance.json").read_text())
    return [stored[0].trainer.memory.autocast, stored[1]["config"]["trainer"]["memory"]["autocast"]]


def test_a_run_on_a_machine_without_bfloat16_goes_on_with_its_own_choice(pupil, logs, tmp_path):
    folder = tmp_path / "run"
    command = [*training(pupil, tmp_path, "tracking.wandb.mode=disabled"), f"hydra.run.dir={folder}"]
    auto = [*command, "trainer.memory.autocast=auto"]
    begun = run(*auto, "trainer.max_steps=2", folder=logs, env=WITHOUT_BFLOAT16, real=True)
    assert begun.code == 0, begun.stderr
    assert "trainer.memory.autocast=auto: null" in begun.stdout and "nothing here multiplies bfloat16" in begun.stdout
    assert autocast_of(folder) == [None, None]
    rest = run(*auto, "resume=must", folder=logs)  # here, whatever this machine multiplies
    assert rest.code == 0, rest.stderr
    assert "trainer.memory.autocast=auto: null (the data type of the weights), as the run was begun" in rest.stdout
    assert autocast_of(folder) == [None, None]
    again = run(*auto, folder=logs)
    assert "Already finished at step 4" in again.stdout and autocast_of(folder) == [None, None]

    refused = run(*command, "trainer.memory.autocast=bfloat16", "trainer.max_steps=6", folder=logs)
    assert refused.code == 2 and "trainer.memory.autocast is 'bfloat16', there None" in refused.one_line()


def test_a_run_that_asks_for_bfloat16_is_warned_where_it_crawls(pupil, logs, tmp_path):
    folder = tmp_path / "run"
    sizes = ["tracking.wandb.mode=disabled", "trainer.max_steps=1", "evaluation.every=0", f"hydra.run.dir={folder}"]
    command = training(pupil, tmp_path, *sizes, autocast="bfloat16")
    result = run(*command, folder=logs, env=WITHOUT_BFLOAT16, real=True)
    assert result.code == 0, result.stderr
    (ratio,) = re.findall(
        r"WARNING\] - trainer\.memory\.autocast=bfloat16: a matrix product in bfloat16 takes (\d+) times as long",
        result.stdout,
    )
    assert int(ratio) >= 2
    assert autocast_of(folder) == ["bfloat16", "bfloat16"]
