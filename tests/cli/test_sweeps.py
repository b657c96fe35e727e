"""Sweeps: a folder and a W&B run a job, nothing twice, one progress bar, and a report on it all."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import DictConfig, OmegaConf

from lens.cli.sweep_progress import count_jobs_and_steps, count_steps, read_last_step
from lens.config.keys import hash_config
from tests.support.command_line import (
    Command,
    Result,
    metrics_of,
    read_wandb,
    run,
    steps_in,
    tables_of,
    training,
    wait_until,
    weights_of,
)

JOBS = [(objective, seed) for objective in ("grpo", "lens") for seed in (0, 1)]


def sweeping(model: Path, outputs: Path, *overrides: object, **keys: object) -> list[object]:
    """The command of a sweep over two objectives and two seeds."""
    script, *rest = training(model, outputs, "objective=grpo,lens", "seed=0,1", *overrides, **keys)
    return [script, "-m", *rest]


@pytest.fixture(scope="module")
def sweep(pupil, logs, tmp_path_factory):
    """A sweep as a user starts it: (how it ended, its folder, its command)."""
    outputs = tmp_path_factory.mktemp("sweep")
    command = sweeping(pupil, outputs, "evaluation.every=0", max_steps=2)
    return run(*command, folder=logs, real=True), outputs / "sweeps" / "tiny", command


def job(sweep: Path, objective: str, seed: int) -> Path:
    (folder,) = sweep.glob(f"{objective}-seed{seed}-*")
    return folder


def first_rollouts(sweep: Path, objective: str, seed: int) -> pd.DataFrame:
    return pd.read_parquet(job(sweep, objective, seed) / "rollouts" / "step_000001.parquet")


def test_a_sweep_makes_a_folder_a_job_named_by_its_config(sweep):
    result, folder, _ = sweep
    assert result.code == 0, result.stderr
    jobs = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert [name.rsplit("-", 1)[0] for name in jobs] == [f"{objective}-seed{seed}" for objective, seed in JOBS]
    for name in jobs:
        config = OmegaConf.load(folder / name / ".hydra" / "config.yaml")
        assert name.rsplit("-", 1)[1] == hash_config(_root_=config)
        assert json.loads((folder / name / "summary.json").read_text())["step"] == 2
        assert "Plan:" in (folder / name / "train.log").read_text()
    assert len({weights_of(folder / name) for name in jobs}) == 4


def test_the_console_shows_the_sweep_and_not_its_jobs(sweep):
    result, _, _ = sweep
    assert "Plan:" not in result.stdout
    bars = [line for line in re.split("[\r\n]", result.stderr) if "%|" in line]
    assert bars[0].startswith("4 runs:   0%")
    assert "8/8" in bars[-1]


def test_objectives_meet_the_same_draws_where_the_seed_is_the_same(sweep):
    _, folder, _ = sweep
    for seed in (0, 1):
        a, b = (first_rollouts(folder, objective, seed) for objective in ("grpo", "lens"))
        pd.testing.assert_series_equal(a["text"], b["text"])
        assert not a["advantage"].equals(b["advantage"])
    a, b = (first_rollouts(folder, "grpo", seed) for seed in (0, 1))
    assert not a["text"].equals(b["text"])


def test_each_job_has_a_wandb_run_that_tells_sweep_objective_and_seed(sweep):
    _, folder, _ = sweep
    ids = set()
    for objective, seed in JOBS:
        records = read_wandb(job(folder, objective, seed))
        (started,) = (record.run for record in records if record.HasField("run"))
        assert started.run_group == "tiny"
        assert started.display_name == f"{objective}-seed{seed}"
        assert list(started.tags) == ["tiny", objective, "tiny", "arithmetic", "transformers"]
        config = {item.key: json.loads(item.value_json) for item in started.config.update}
        assert config["seed"] == seed
        assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
        ids.add(started.run_id)
    assert len(ids) == 4


def test_a_sweep_that_is_started_again_does_nothing(sweep, logs):
    _, folder, command = sweep

    def state() -> dict[Path, int]:
        files = [path for path in folder.rglob("*") if path.is_file() and ".hydra" not in path.parts]
        return {path: path.stat().st_mtime_ns for path in files if path.name not in ("train.log", "multirun.yaml")}

    before = state()
    result = run(*command, "hydra/launcher=basic", folder=logs)  # whose jobs need not import everything again
    assert result.code == 0, result.stderr
    assert state() == before
    for objective, seed in JOBS:
        assert (job(folder, objective, seed) / "train.log").read_text().count("Already finished at step 2") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_has_its_checkpoints_and_goes_on(pupil, logs, tmp_path, number):
    folder = tmp_path / "sweeps" / "tiny"
    command = sweeping(pupil, tmp_path, "seed=0", "evaluation.every=0", max_steps=6, checkpoint_every=1)
    running = Command(*command, folder=logs)
    running.wait_until(lambda: len(list(folder.glob("*/checkpoints/step_000002"))) > 0)
    if number == signal.SIGTERM:
        os.kill(running.process.pid, number)  # as a scheduler does
    else:
        running.signal(number)  # as a terminal does
    result = running.wait()
    assert result.code == 130, result.stderr
    assert result.stderr.splitlines()[-1] == "stopped: the same command resumes from the last checkpoint"
    assert "Traceback" not in result.stderr.split("stopped: ")[-1]
    wait_until(lambda: not processes_of(running))
    assert "resource_tracker" not in running.stderr.read_text()  # which would tell of what killed workers leave behind
    begun = {path.parent.parent: steps_in(path.parent.parent) for path in folder.glob("*/checkpoints/step_*")}
    assert begun and not list(folder.glob("*/summary.json"))
    for path, step in begun.items():
        assert [checkpoint.name for checkpoint in (path / "checkpoints").iterdir()] == [f"step_{step:06d}"]
    if number == signal.SIGTERM:
        return

    again = run(*command, folder=logs)
    assert again.code == 0, again.stderr
    for path, step in begun.items():
        assert f"Resuming from step {step}" in (path / "train.log").read_text()
    for objective in ("grpo", "lens"):
        steps = [line["train/global_step"] for line in metrics_of(job(folder, objective, 0)) if "reward" in line]
        assert steps == list(range(1, 7))


def processes_of(command: Command) -> list[tuple[int, str]]:
    """(parent, command line) of what still runs of all that a command has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(session) == command.process.pid and state != "Z":
            found.append((int(parent), stat.with_name("cmdline").read_text()))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux kills processes with their parent")
def test_nothing_is_left_of_a_sweep_that_is_killed(pupil, logs, tmp_path):
    running = Command(*sweeping(pupil, tmp_path, max_steps=1000), folder=logs)
    running.wait_until(lambda: len(list(tmp_path.glob("sweeps/tiny/*/metrics.jsonl"))) == 2)
    assert len(processes_of(running)) > 4  # the sweep, its two jobs, and their graders
    os.kill(running.process.pid, signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    killed = time.monotonic()
    assert wait_until(lambda: not processes_of(running)), processes_of(running)
    assert time.monotonic() - killed < 30


def errors_of(result: Result, swept: str) -> dict[str, str]:
    """Objective -> why its job failed, by the last lines of a sweep, which name the job and what was swept."""
    errors = result.errors()
    assert result.stderr.splitlines()[-len(errors) :] == errors
    assert "Traceback" not in result.stdout + result.stderr
    found = {}
    for line in errors:
        name, differs, reason = re.fullmatch(r"error: (\S+) \((.*?)\): (.*)", line).groups()
        objective = re.fullmatch(r"(grpo|lens)-seed0-[0-9a-f]{8}", name)[1]
        assert sorted(differs.split()) == sorted([f"objective={objective}", swept])
        found[objective] = reason
    return found


def test_jobs_of_hydra_s_own_launcher_that_cannot_work_are_named_and_the_others_run(pupil, logs, tmp_path):
    keys = {"num_generations": "1,4", "max_steps": 2}
    script, *overrides = training(pupil, tmp_path, "objective=grpo,lens", "evaluation.every=0", **keys)
    result = run(script, *overrides, "hydra/launcher=basic", "--multirun", folder=logs)
    assert result.code == 2, result.stderr
    says = "trainer.rollouts.num_generations=1: must be an integer >= 2"
    reasons = errors_of(result, "trainer.rollouts.num_generations=1")
    assert reasons.keys() == {"grpo", "lens"} and all(reason.startswith(says) for reason in reasons.values())
    assert len(list(tmp_path.glob("sweeps/tiny/*/summary.json"))) == 2


def test_jobs_that_are_killed_or_fail_are_named_and_the_others_run(pupil, logs, tmp_path):
    file = tmp_path / "wait"
    file.touch()
    sampler = "sampler._target_=tests.support.faults.WaitingSampler", f"+sampler.while_exists={file}"
    keys = {"learning_rate": "1e+300,1e-4", "max_steps": 3}
    script, *overrides = training(pupil, tmp_path, "objective=grpo,lens", "evaluation.every=0", *sampler, **keys)
    running = Command(script, *overrides, "jobs=1", "--multirun", folder=logs)
    running.wait_until(file.with_suffix(".reached").exists)
    (first_job,) = {parent for parent, command in processes_of(running) if "lens.grading.worker" in command}
    os.kill(first_job, signal.SIGKILL)
    file.unlink()
    result = running.wait()
    assert result.code == 1, result.stderr
    reasons = errors_of(result, "optimizer.learning_rate=1e+300")
    assert reasons.keys() == {"grpo", "lens"}
    assert reasons["grpo"].startswith("RuntimeError: its process ended with SIGKILL")
    assert reasons["lens"].startswith(("RuntimeError: ", "RunFailed: step "))
    (failed,) = (path for path in tmp_path.glob("sweeps/tiny/lens-*") if not (path / "summary.json").exists())
    assert "Traceback" in (failed / "train.log").read_text()
    finished = {path.parent.name.rsplit("-", 1)[0] for path in tmp_path.glob("sweeps/tiny/*/summary.json")}
    assert finished == {"grpo-seed0", "lens-seed0"}
    assert not list(tmp_path.glob("sweeps/tiny/*.failed"))


# --- the report ------------------------------------------------------------------------------------------------------


def pass_at_k(correct: pd.Series, samples: int, k: int) -> pd.Series:
    """1 - the chance that k answers drawn without replacement are all wrong."""
    all_wrong = 1.0
    for drawn in range(k):
        all_wrong = all_wrong * (samples - correct - drawn).clip(lower=0) / (samples - drawn)
    return 1 - all_wrong


@pytest.fixture(scope="module")
def report(sweep, logs):
    """The report on the sweep, by its command."""
    _, folder, _ = sweep
    half_written = folder / "grpo-seed2-00000000"
    (half_written / ".hydra").mkdir(parents=True)
    (half_written / ".hydra" / "config.yaml").write_text("seed: 2\n")
    return run("scripts/report.py", f"runs={folder}", folder=logs, real=True), folder, half_written


def test_a_report_prints_and_writes_its_tables(report):
    result, folder, half_written = report
    assert result.code == 0, result.stderr
    assert result.stderr == ""
    assert f"note: {half_written}: not finished, left out" in result.stdout
    assert "Accuracy on held-out problems" in result.stdout
    assert "Difference to grpo in points" in result.stdout
    written = {path.name for path in (folder / "report").iterdir()}
    figures = {f"{name}_over_steps.{kind}" for name in ("accuracy", "negative_groups") for kind in ("png", "pdf")}
    assert figures | {"accuracy.csv", "difference.csv"} <= written
    for name in figures:
        assert (folder / "report" / name).stat().st_size > 5000
    assert {"index.html", "accuracy.tex", "difference.tex"} <= written
    lines = result.stdout.splitlines()
    assert f"tables:  {folder / 'report'}/{{accuracy,gain,difference,signal,compute}}.{{csv,md,tex}}" in lines
    (page,) = (place for place, line in enumerate(lines) if line == f"page:    {folder / 'report' / 'index.html'}")
    assert lines[page + 1 :] and all(re.search(r": not decided|, decided on", line) for line in lines[page + 1 :])


def test_the_numbers_of_the_tables_are_those_of_the_stored_evaluations(report):
    _, folder, _ = report

    def rows(objective: str, seed: int, step: int) -> pd.DataFrame:
        return pd.read_parquet(job(folder, objective, seed) / "evaluations" / f"step_{step:06d}.parquet")

    def accuracy(objective: str, seed: int, step: int, part: str, k: int) -> float:
        found = rows(objective, seed, step)
        levels = {"all": range(1, 6), "Levels 4-5": (4, 5)}.get(part) or [int(part.removeprefix("Level "))]
        found = found[found["level"].isin(list(levels))]
        return 100 * pass_at_k(found["correct"], 4, k).mean()

    parts = ["all", *(f"Level {level}" for level in range(1, 6)), "Levels 4-5"]
    table = pd.read_csv(folder / "report" / "accuracy.csv").set_index(["part", "arm"])
    assert set(table.index) == {(part, arm) for part in parts for arm in ("before training", "grpo", "lens")}
    assert (table["seeds"] == 2).all()
    for (part, arm), row in table.iterrows():
        objective, step = ("grpo", 0) if arm == "before training" else (arm, 2)
        for k in (1, 2, 4):
            expected = sum(accuracy(objective, seed, step, part, k) for seed in (0, 1)) / 2
            assert row[f"pass@{k}"] == pytest.approx(expected, abs=1e-9), (part, arm, k)
            assert pd.isna(row[f"pass@{k} half-width"])  # two seeds give no interval
    assert table["pass@1"].max() > 0

    difference = pd.read_csv(folder / "report" / "difference.csv").set_index("part")
    assert list(difference.index) == parts
    for part, row in difference.iterrows():
        for k in (1, 2, 4):
            pairs = [accuracy("lens", seed, 2, part, k) - accuracy("grpo", seed, 2, part, k) for seed in (0, 1)]
            assert row[f"pass@{k}"] == pytest.approx(sum(pairs) / 2, abs=1e-9)


def test_the_printed_numbers_are_those_of_the_csv(report):
    result, folder, _ = report
    table = pd.read_csv(folder / "report" / "accuracy.csv")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    printed = [row for row in cells if row[1] in ("before training", "grpo", "lens") and len(row) == 6][: len(table)]
    for row, (_, expected) in zip(printed, table.iterrows(), strict=True):
        assert row[0] in (expected["part"], "")
        assert row[1:3] == [expected["arm"], "2"]
        for cell, k in zip(row[3:], (1, 2, 4), strict=True):
            assert float(cell) == pytest.approx(expected[f"pass@{k}"], abs=0.0501)


def test_a_report_against_an_unknown_baseline_names_those_there_are(report, logs, tmp_path):
    _, folder, _ = report
    result = run("scripts/report.py", f"runs={folder}", "baseline=dapo", f"target={tmp_path / 'r'}", folder=logs)
    assert result.code == 2
    assert result.stderr == "error: baseline='dapo': must be one of grpo, lens; null: no differences\n"
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_sweep_that_was_killed_ends_with_the_same_tables(pupil, logs, tmp_path):
    whole = sweeping(pupil, tmp_path / "whole", max_steps=4, checkpoint_every=1)
    assert run(*whole, "hydra.launcher.n_jobs=1", folder=logs).code == 0
    command = sweeping(pupil, tmp_path / "killed", max_steps=4, checkpoint_every=1)
    folder = tmp_path / "killed" / "sweeps" / "tiny"
    running = Command(*command, folder=logs)
    running.wait_until(lambda: len(list(folder.glob("*/checkpoints/step_000002"))) > 0)
    running.signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    assert len(list(folder.glob("*/summary.json"))) < 4

    assert run(*command, "hydra.launcher.n_jobs=1", folder=logs).code == 0
    logged = [(job(folder, *which) / "train.log").read_text() for which in JOBS]
    assert any("Resuming from step" in log for log in logged)
    assert tables_of(tmp_path / "killed", logs) == tables_of(tmp_path / "whole", logs)


# --- counting --------------------------------------------------------------------------------------------------------


def config_of(overrides: list[str], params: dict[str, str] | None = None) -> DictConfig:
    hydra = {"sweeper": {"params": params}, "overrides": {"task": overrides}}
    return OmegaConf.create({"trainer": {"max_steps": 10}, "hydra": hydra})


@pytest.mark.parametrize(
    ("overrides", "params", "jobs", "steps"),
    [
        (["seed=0,1", "objective=grpo,lens"], None, 4, 40),
        (["seed=3"], None, 1, 10),
        ([], None, 1, 10),
        (["seed=range(5)"], {}, 5, 50),
        (["experiment=demo"], {"objective": "grpo,lens,lens_strong", "seed": "range(5)"}, 15, 150),
        (["seed=0,1", "trainer.max_steps=3"], {"objective": "grpo,lens,lens_strong", "seed": "range(5)"}, 6, 18),
        (["seed=7"], {"objective": "grpo", "seed": "range(5)"}, 1, 10),
        (["+trainer.extra=1,2", "optimizer.adam_betas=[0.9,0.95],[0.8,0.9]"], None, 4, 40),
        (["objective.scale_negative=null,1.0", "objective.alpha=0.25,1,4,16"], {"seed": "range(6)"}, 48, 480),
        (["seed=range(3)"], {"trainer.max_steps": "240"}, 3, 720),
        ([], {"trainer.max_steps": "75,85", "seed": "range(4)"}, 8, 640),
        (["trainer.max_steps=5"], {"trainer.max_steps": "75,85", "seed": "range(4)"}, 4, 20),
        (["trainer.max_steps=many,5"], {"seed": "range(4)"}, 8, None),
    ],
)
def test_jobs_and_their_steps_are_counted_as_hydra_expands_them(overrides, params, jobs, steps):
    assert count_jobs_and_steps(config_of(overrides, params)) == (jobs, steps)


def test_steps_of_earlier_runs_are_not_counted(tmp_path):
    for number, (age, lines) in enumerate([(0, [0, 1, 2, 2]), (0, [0, 1]), (500, [0, 9]), (0, None), (0, [])]):
        config = tmp_path / f"run{number}" / ".hydra" / "config.yaml"
        config.parent.mkdir(parents=True)
        config.touch()
        os.utime(config, (10_000 - age, 10_000 - age))
        if lines is not None:
            text = "".join(json.dumps({"train/global_step": step}) + "\n" for step in lines)
            (config.parent.parent / "metrics.jsonl").write_text(text)
    assert count_steps(tmp_path, since=10_000) == 3
    assert count_steps(tmp_path, since=9_000) == 12
    assert count_steps(tmp_path / "absent", since=0) == 0


def test_the_last_whole_line_counts(tmp_path):
    file = tmp_path / "metrics.jsonl"
    long = "".join(json.dumps({"train/global_step": step, "filling": "x" * 3000}) + "\n" for step in range(100))
    file.write_text(long + '{"train/global_step": 100, "fil')
    assert read_last_step(file) == 99
