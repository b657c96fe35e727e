"""Runs from the command line: what they leave behind, that they repeat themselves, and what ends them."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lens.files import CONFIGS
from lens.runs.checkpoints import load_state
from lens.runs.run import FAILURE
from tests.support.command_line import (
    assert_one_wandb_run,
    assert_same_end,
    metrics_of,
    read_wandb,
    run,
    training,
    wandb_history,
    weights_of,
)
from tests.support.objectives import SILENT

STEP_METRICS = {
    "train/global_step",
    "epoch",
    "loss",
    "kl",
    "entropy",
    "grad_norm",
    "learning_rate",
    "weights/changed_share",
    "empty_step",
    "tokens_per_second",
    "tokens/trained",
    "total/tokens_generated",
    "total/tokens_trained",
    "reward",
    "reward/calibrated",
    "confidence/correct_mean",
    "confidence/incorrect_mean",
    *(f"groups/frac_{kind}" for kind in ("negative", "mixed", "positive")),
    "groups/advantage_share_negative",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    *(f"completions/{name}" for name in ("mean_length", "clipped_ratio", "valid_ratio", "trained")),
    *(f"grading/{name}_rate" for name in ("no_answer", "error", "timeout", "bad_gold", "unjudged")),
    *(f"time/{name}_s" for name in ("sample", "grade", "logprobs", "update", "step")),
}
EVALUATED = ("", *(f"level_{level}/" for level in range(1, 6)), "levels_4-5/")
OBJECTIVES = sorted(file.stem for file in (CONFIGS / "objective").glob("*.yaml"))


@pytest.fixture(scope="module")
def first(pupil, logs, tmp_path_factory):
    """A run as a user starts it: (how it ended, its folder, its command)."""
    outputs = tmp_path_factory.mktemp("first")
    command = training(pupil, outputs)
    result = run(*command, folder=logs, real=True)
    (folder,) = (outputs / "runs").iterdir()
    return result, folder, command


# --- one run ---------------------------------------------------------------------------------------------------------


def test_a_run_ends_well_and_says_what_it_does(first):
    result, folder, _ = first
    assert result.code == 0, result.stderr
    plan = next(line for line in result.stdout.splitlines() if "Plan:" in line)
    for part in (
        "20 problems (0 too long)",
        "a round is 4 questions x 4 answers of at most 26 tokens = 16 answers",
        "1 update(s) a round of 16 answers each",
        "5 steps an epoch, 4 steps = 0.80 epochs",
        "evaluation every 2 steps on 20 problems x 4 samples",
    ):
        assert part in plan
    assert result.stdout.splitlines()[-1].endswith(str(folder))
    assert "Finished at step 4 (eval/arithmetic/pass@1 " in result.stdout
    assert "4/4" in result.stderr  # the progress bar


def test_a_run_folder_holds_what_its_readme_says(first):
    _, folder, _ = first
    found = {path.name for path in folder.iterdir()}
    files = {
        "metrics.jsonl",
        "provenance.json",
        "contamination.json",
        "failing_golds.json",
        "summary.json",
        "train.log",
    }
    assert found == files | {".hydra", "evaluations", "rollouts", "checkpoints", "wandb"}
    assert {path.name for path in (folder / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert folder.name.endswith("_lens-seed0")
    contamination = json.loads((folder / "contamination.json").read_text())
    assert contamination["arithmetic"]["count"] == 20
    assert json.loads((folder / "summary.json").read_text())["contamination"]["arithmetic"]["count"] == 20
    assert not list(folder.rglob("*.unfinished"))


def test_metrics_have_the_names_of_the_field(first):
    _, folder, _ = first
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/global_step"] for line in lines] == [0, 1, 2, 2, 3, 4, 4]
    steps = [line for line in lines if "reward" in line]
    evaluations = [line for line in lines if "reward" not in line]
    for line in steps:
        assert line.keys() >= STEP_METRICS - {"confidence/correct_mean"}  # a batch may have no correct answer
        assert all(math.isfinite(value) for value in line.values())
        kinds = [line[f"groups/frac_{kind}"] for kind in ("negative", "mixed", "positive")]
        assert sum(kinds) == pytest.approx(1)
        assert line["time/step_s"] >= line["time/sample_s"] + line["time/update_s"]
        assert 0 < line["entropy"] < 6
    assert all("time/sync_s" in line for line in steps[1:])
    for step, line in enumerate(steps, start=1):
        measured = {"groups/grad_norm_share_negative", "groups/grad_cosine"} <= line.keys()
        assert measured == (step == 1 or step % 2 == 0)
    assert any("confidence/correct_mean" in line for line in steps)
    assert any("groups/frac_negative/level_5" in line for line in steps)
    for line in evaluations:
        assert line.keys() >= {f"eval/arithmetic/{part}pass@{k}" for part in EVALUATED for k in (1, 2, 4)}
        assert line["eval/arithmetic/pass@1"] <= line["eval/arithmetic/pass@2"] <= line["eval/arithmetic/pass@4"]
    assert evaluations[0]["eval/arithmetic/level_1/pass@1"] > evaluations[0]["eval/arithmetic/level_5/pass@1"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["step"] == 4
    assert summary["metrics"].items() <= evaluations[-1].items()


def test_evaluations_have_a_row_a_problem_and_the_answers_beside_them(first):
    _, folder, _ = first
    names = sorted(file.name for file in (folder / "evaluations").iterdir())
    assert names == [f"step_{step:06d}{kind}.parquet" for step in (0, 2, 4) for kind in ("", "_completions")]
    rows = pd.read_parquet(folder / "evaluations" / "step_000004.parquet")
    assert list(rows.columns[:6]) == ["set", "id", "level", "subject", "n", "correct"]
    assert len(rows) == rows["id"].nunique() == 20
    assert rows["level"].value_counts().to_dict() == dict.fromkeys(range(1, 6), 4)
    assert (rows["n"] == 4).all()
    assert rows["correct"].between(0, 4).all()
    answers = pd.read_parquet(folder / "evaluations" / "step_000004_completions.parquet")
    assert len(answers) == 80
    correct = answers["verdict"].eq("correct").groupby(answers["id"]).sum()
    assert (rows.set_index("id")["correct"] == correct.loc[rows["id"]]).all()
    share = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["eval/arithmetic/pass@1"]
    assert correct.sum() / 80 == pytest.approx(share)


def test_rollouts_have_a_row_a_completion(first):
    _, folder, _ = first
    names = sorted(file.name for file in (folder / "rollouts").iterdir())
    assert names == [f"step_{step:06d}.parquet" for step in (1, 2, 3, 4)]
    lines = [line for line in metrics_of(folder) if "reward" in line]
    seen = []
    for name, line in zip(names, lines, strict=True):
        rows = pd.read_parquet(folder / "rollouts" / name)
        assert set(rows.columns) == {
            *("problem_id", "level", "sample", "prompt_ids", "completion_ids", "logprobs", "length", "finish_reason"),
            *("text", "answer", "verdict", "valid", "confidence", "reward", "calibrated_reward", "advantage"),
        }
        assert len(rows) == 16
        assert (rows.groupby("problem_id")["sample"].apply(list).map(tuple) == (0, 1, 2, 3)).all()
        assert (rows["completion_ids"].map(len) == rows["length"]).all()
        assert (rows["logprobs"].map(len) == rows["length"]).all()
        confidence = rows["logprobs"].map(lambda row: math.exp(np.mean(row, dtype=float)))
        np.testing.assert_allclose(rows["confidence"], confidence, rtol=1e-5)
        assert rows["verdict"].eq("correct").mean() == pytest.approx(line["reward"])
        assert rows["calibrated_reward"].mean() == pytest.approx(line["reward/calibrated"], abs=1e-6)
        assert rows.groupby("problem_id")["advantage"].sum().abs().max() < 1e-5
        assert set(rows["finish_reason"]) <= {"stop", "length"}
        seen += rows["problem_id"].unique().tolist()
    assert len(seen) == len(set(seen)) == 16  # no problem twice in an epoch


def test_provenance_says_where_a_result_comes_from(first):
    _, folder, command = first
    found = json.loads((folder / "provenance.json").read_text())
    assert found["command"][1:] == [str(argument) for argument in command[1:]]
    assert set(found["git"]) == {"commit", "dirty"}
    assert found["git"]["commit"] is None or len(found["git"]["commit"]) == 40
    assert found["git"]["dirty"] in (None, True, False)
    assert found["packages"]["torch"] == torch.__version__
    assert {"transformers", "hydra-core", "wandb", "datasets", "math-verify"} <= set(found["packages"])
    assert {"platform", "processor", "cpus", "threads", "gpus"} <= set(found["machine"])
    assert found["machine"]["threads"] == found["machine"]["processes"] == 1


def test_a_checkpoint_is_a_hugging_face_model(first, pupil):
    _, folder, _ = first
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert checkpoint.name == "step_000004"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    before = AutoModelForCausalLM.from_pretrained(pupil).state_dict()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert tokenizer.decode(tokenizer("Compute $ 2 + 3 $ .").input_ids) == "Compute $ 2 + 3 $ ."
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(pupil).chat_template


def test_wandb_is_fed_the_same_values(first):
    _, folder, _ = first
    records = read_wandb(folder)
    (started,) = (record.run for record in records if record.HasField("run"))
    assert (started.project, started.run_group, started.display_name) == ("lens", "tiny", "lens-seed0")
    assert list(started.tags) == ["tiny", "lens", "tiny", "arithmetic", "transformers"]
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert config["trainer"]["rollouts"]["num_generations"] == 4
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    axes = [record.metric for record in records if record.HasField("metric")]
    assert {axis.step_metric for axis in axes if axis.glob_name == "*"} == {"train/global_step"}

    assert_one_wandb_run(folder)
    tables = [line for line in wandb_history(folder) if any(name.startswith("eval/completions") for name in line)]
    assert [line["train/global_step"] for line in tables] == [0, 2, 4]


def test_what_is_printed_to_a_file_has_no_terminal_codes(first):
    result, _, _ = first
    assert "\x1b" not in result.stdout + result.stderr


def test_the_same_command_gives_the_same_numbers(first, logs):
    _, folder, command = first
    again = folder.parent / "again"
    result = run(*command, f"hydra.run.dir={again}", folder=logs)
    assert result.code == 0, result.stderr
    assert_same_end(again, folder)


def test_another_seed_gives_other_numbers(first, logs):
    _, folder, command = first
    other = folder.parent / "other"
    result = run(*command, f"hydra.run.dir={other}", "seed=1", "tracking.wandb.mode=disabled", folder=logs)
    assert result.code == 0, result.stderr
    assert weights_of(other) != weights_of(folder)
    assert metrics_of(other)[1] != metrics_of(folder)[1]
    assert not list(other.glob("wandb/*run-*"))


def test_a_finished_run_is_left_alone(first, logs):
    _, folder, command = first
    rewritten = {".hydra", "train.log"}  # by Hydra itself
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if not rewritten & {*path.parts}}
    result = run(*command, f"hydra.run.dir={folder}", folder=logs)
    assert result.code == 0
    assert "Already finished at step 4" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_every_objective_trains(pupil, logs, tmp_path):
    sizes = {"num_prompts_per_rollout": 8, "num_prompts_per_step": 8, "num_generations": 8}
    command = training(pupil, tmp_path, max_steps=2, **sizes)
    options = ["evaluation.every=0", "evaluation.num_samples=1", "tracking.wandb.mode=disabled", "dataset.seed=0"]
    options += ["evaluation.sets.arithmetic.size=5", "check_golds=false"]
    sweep = [command[0], "-m", *command[1:], f"objective={','.join(OBJECTIVES)}", "hydra/launcher=basic"]
    result = run(*sweep, *options, folder=logs)
    assert result.code == 0, result.stderr
    ends, started = {}, []
    for objective in OBJECTIVES:
        (folder,) = (tmp_path / "sweeps" / "tiny").glob(f"{objective}-seed0-*")
        ends[objective] = weights_of(folder)
        before, step, *_ = metrics_of(folder)
        teaching = step["groups/advantage_share_negative"]
        assert step["groups/frac_negative"] > 0, "no negative group, nothing to tell objectives apart by"
        if objective in SILENT:
            assert teaching == step["groups/grad_norm_share_negative"] == 0
        else:
            assert 0 < teaching < 1
            assert 0 < step["groups/grad_norm_share_negative"] < 1
        assert step["grad_norm"] > 0
        started.append(before)
    assert started == started[:1] * len(OBJECTIVES)  # the same draws for everyone
    assert len(set(ends.values())) == len(OBJECTIVES)


def test_where_a_round_is_one_update_its_own_log_probabilities_do(pupil, logs, tmp_path):
    ends = {}
    for source in ("trainer", "current"):
        folder = tmp_path / source
        result = run(*training(pupil, tmp_path, old_logprobs=source), f"hydra.run.dir={folder}", folder=logs)
        assert result.code == 0, result.stderr
        ends[source] = [line for line in metrics_of(folder) if "reward" in line]
    for line, other in zip(ends["current"], ends["trainer"], strict=True):
        assert "sampling/logp_difference_max" in other and "sampling/logp_difference_max" not in line
        for name in ("reward", "loss", "grad_norm", "groups/frac_negative"):
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)


# --- guards ----------------------------------------------------------------------------------------------------------

INFINITE = ["objective=grpo", "objective._target_=tests.support.faults.infinite_advantages"]


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_its_cause(pupil, logs, tmp_path):
    sizes = {"num_prompts_per_rollout": 8, "rollouts_every": 0, "max_tokens_per_microbatch": 180}
    folder = tmp_path / "run"
    result = run(*training(pupil, tmp_path, *INFINITE, **sizes), f"hydra.run.dir={folder}", folder=logs)
    assert result.code == 1, result.stderr
    line = result.one_line()
    rollouts = folder / "rollouts" / "step_000001.parquet"
    assert re.match(r"failed: step 1: micro-batch \d+ of \d+ \(\d answers to \S+.*\) has loss -?inf", line)
    assert f"its rollouts: {rollouts}" in line
    rows = pd.read_parquet(rollouts)
    assert len(rows) == 8 * 4
    assert rows["answer"].notna().all()
    assert np.isinf(rows["advantage"]).sum() == 1
    assert rows.loc[np.isinf(rows["advantage"]), "problem_id"].item() in line
    assert not (folder / "summary.json").exists()
    assert not (folder / "checkpoints").exists()


def test_updates_that_are_not_finite_can_be_left_out(pupil, logs, tmp_path):
    folder = tmp_path / "run"
    sizes = {"num_prompts_per_rollout": 8, "non_finite": "skip", "rollouts_every": 0, "learning_rate": 1e-2}
    command = training(pupil, tmp_path, *INFINITE, "tracking.wandb.mode=disabled", **sizes)
    result = run(*command, f"hydra.run.dir={folder}", folder=logs)
    assert result.code == 0, result.stderr
    steps = [line for line in metrics_of(folder) if "reward" in line]
    assert [line["total/updates_skipped"] for line in steps] == [1, 1, 2, 2]  # the first mini-batch of each round
    assert [{"loss", "grad_norm"} <= line.keys() for line in steps] == [False, True, False, True]
    assert result.stdout.count("this update is skipped") == 2
    assert sorted(file.name for file in (folder / "rollouts").iterdir()) == [
        "step_000001.parquet",
        "step_000003.parquet",
    ]


def test_an_entropy_over_the_limit_stops_the_run_with_a_checkpoint(pupil, logs, tmp_path):
    folder = tmp_path / "run"
    command = [*training(pupil, tmp_path, "tracking.wandb.mode=disabled"), f"hydra.run.dir={folder}"]
    result = run(*command, "trainer.max_entropy=1e-6", folder=logs)
    assert result.code == 1, result.stderr
    assert re.match(r"failed: step 1: entropy 0\.\d+ > trainer.max_entropy=1e-06; to resume: ", result.one_line())
    assert load_state(folder / "checkpoints" / "step_000001")["step"] == 1
    assert re.fullmatch(r"step 1: entropy 0\.\d+ > trainer.max_entropy=1e-06\n", (folder / FAILURE).read_text())
    rest = run(*command, "resume=must", folder=logs)
    assert rest.code == 0, rest.stderr
    assert not (folder / FAILURE).exists()
