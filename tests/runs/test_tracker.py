"""What is written while a run runs, and cut back when it goes on."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import wandb

from lens.runs import tracker as tracking
from lens.runs.tracker import STEP_AXIS, Tracker, cut_metrics
from tests.support.command_line import assert_one_wandb_run, read_wandb, wandb_history

# --- metrics.jsonl ---------------------------------------------------------------------------------------------------


def lines(steps) -> str:
    return "".join(json.dumps({STEP_AXIS: step, "reward": step / 10}) + "\n" for step in steps)


def test_metrics_are_cut_back_to_a_number_of_lines(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(lines([0, 1, 2, 2, 3, 4]))
    assert cut_metrics(file, 4) == 4
    assert file.read_text() == lines([0, 1, 2, 2])
    assert cut_metrics(file, 4) == 4
    assert file.read_text() == lines([0, 1, 2, 2])
    assert cut_metrics(file, 0) == 0
    assert file.read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("length", [1, 12, 20, -3, -2])
def test_a_half_written_last_line_is_cut_off(tmp_path, length):
    file = tmp_path / "metrics.jsonl"
    file.write_text(lines([1, 2]) + lines([3])[:length])
    assert cut_metrics(file, 2) == 2
    assert file.read_text() == lines([1, 2])


def test_no_metrics_are_no_trouble(tmp_path):
    assert cut_metrics(tmp_path / "metrics.jsonl", 2) == 0
    assert not list(tmp_path.iterdir())


# --- the tracker -----------------------------------------------------------------------------------------------------


@pytest.fixture
def track(tmp_path, home):
    """Makes trackers of one run folder, with W&B in the mode that is asked for."""

    def make(mode: str = "offline", **resumed) -> Tracker:
        settings = {"mode": mode, "project": "lens", "group": "sweep", "name": "grpo-seed1", "tags": ["tiny", "grpo"]}
        return Tracker(tmp_path / "run", {"seed": 1}, settings, **{"run_id": None, "lines": 0, **resumed})

    (tmp_path / "run").mkdir()
    return make


def test_the_mean_of_nothing_is_left_out(track, tmp_path):
    tracker = track("disabled")
    tracker.log(3, {"reward": 0.5, "confidence/correct_mean": math.nan})
    tracker.finish({"step": 3, "metrics": {"reward": 0.5}})
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line == {STEP_AXIS: 3, "reward": 0.5}
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"step": 3, "metrics": {"reward": 0.5}}


def test_wandb_gets_what_is_committed_and_goes_on_under_its_id(track, tmp_path):
    folder = tmp_path / "run"
    tracker = track()
    first_id = tracker.run_id
    tracker.log(1, {"reward": 0.25})
    tracker.log(2, {"reward": 0.5})
    tracker.commit()
    tracker.log(3, {"reward": 0.75})  # behind the last checkpoint when the run ends
    tracker.finish(None)
    wandb.teardown()  # its service has written everything
    assert [line["reward"] for line in wandb_history(folder)] == [0.25, 0.5]
    assert not (folder / "summary.json").exists()

    tracker = track(run_id=first_id, lines=2)
    assert tracker.run_id == first_id
    tracker.log(3, {"reward": 1.0})
    tracker.finish({"step": 3, "metrics": {"eval/x/pass@1": 0.125}})
    wandb.teardown()
    written = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert written == [{STEP_AXIS: step, "reward": value} for step, value in ((1, 0.25), (2, 0.5), (3, 1.0))]
    assert [(line[STEP_AXIS], line["reward"]) for line in wandb_history(folder)] == [(1, 0.25), (2, 0.5), (3, 1.0)]

    records = read_wandb(folder)
    started = [record.run for record in records if record.HasField("run")]
    assert [run.run_id for run in started] == [first_id, first_id]
    for run in started:
        assert (run.project, run.run_group, run.display_name) == ("lens", "sweep", "grpo-seed1")
        assert list(run.tags) == ["tiny", "grpo"]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1, 0]
    summaries = [i for r in records if r.HasField("summary") for i in r.summary.update]
    assert "0.125" in {item.value_json for item in summaries if "eval/x/pass@1" in (item.key, *item.nested_key)}


def test_what_a_kill_kept_from_wandb_is_fed_again_and_nothing_twice(track, tmp_path):
    folder = tmp_path / "run"
    tracker = track()
    for step in range(4):
        tracker.log(step, {"reward": step / 8})
    tracker.commit()
    tracker.finish(None)
    wandb.teardown()
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    whole, steps = file.read_bytes(), []
    for length in range(len(whole), 0, -1):  # as far as a kill lets it get: two of four lines
        file.write_bytes(whole[:length])
        steps = [line["_step"] for line in wandb_history(folder)]
        if steps == [0, 1]:
            break
    assert steps == [0, 1]
    tracker = track(lines=4)
    tracker.log(4, {"reward": 0.5})
    tracker.finish({"step": 4, "metrics": {}})
    wandb.teardown()
    assert_one_wandb_run(folder)


def test_a_start_leaves_no_metrics_of_an_earlier_one(track, tmp_path):
    (tmp_path / "run" / "metrics.jsonl").write_text(lines([0, 1, 2]))
    tracker = track("disabled")
    tracker.log(0, {"reward": 1.0})
    tracker.finish(None)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text()) == {STEP_AXIS: 0, "reward": 1.0}


def test_evaluations_are_stored_and_a_sample_of_each_level_is_shown(track, tmp_path):
    tracker = track()
    levels = [1, 2, 3, 4, 5, None]
    rows = pd.DataFrame({"id": levels, "level": levels}).astype({"level": "Int64"})
    scores = [None, 0.25]
    answers = pd.DataFrame(
        [{"level": level, "text": f"{level}-{n}", "score": scores[n % 2]} for level in levels for n in range(30)]
    ).astype({"level": "Int64", "score": "Float64"})
    tracker.write_evaluation(7, rows, answers)
    tracker.log(7, {"eval/x/pass@1": 0.5})
    tracker.finish({"step": 7, "metrics": {}})
    stored = tmp_path / "run" / "evaluations"
    assert sorted(file.name for file in stored.iterdir()) == ["step_000007.parquet", "step_000007_completions.parquet"]
    pd.testing.assert_frame_equal(pd.read_parquet(stored / "step_000007_completions.parquet"), answers)
    (table,) = (tmp_path / "run" / "wandb").glob("offline-run-*/files/media/table/eval/*.json")
    shown = json.loads(table.read_text())
    level = shown["columns"].index("level")
    assert {row[level] for row in shown["data"]} >= {1, 2, 3, 4, 5}
    assert 0.25 in {row[shown["columns"].index("score")] for row in shown["data"]}
    assert len(shown["data"]) <= tracking.COMPLETIONS_IN_WANDB
