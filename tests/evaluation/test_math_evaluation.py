"""MATH from local files through the command line: evaluation, training, contamination, files that cannot be used."""

from __future__ import annotations

import json
import os
import random
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset

from lens.evaluation.evaluator import EvaluationSet, Evaluator
from lens.evaluation.scores import compute_metrics, make_table
from lens.files import write_parquet
from lens.grading.judge import last_boxed
from lens.grading.pool import Grader
from lens.problems import load_problems
from lens.problems.prompts import Prompt
from lens.sampling.rollouts import Rollouts
from tests.support.command_line import environment, run

SIZES = [
    "evaluation.num_samples=2",
    "trainer.rollouts.max_completion_length=8",
    "trainer.memory.num_threads=1",
    "grader.num_workers=1",
]


def math500_row(number: int, **changes: object) -> dict:
    row = {"problem": f"What is ${number} + 1$ ?", "solution": "", "answer": str(number + 1), "subject": "Algebra"}
    return row | {"level": 1 + number % 5, "unique_id": f"test/algebra/{number}.json"} | changes


def math_row(number: int, **changes: object) -> dict:
    row = {"problem": f"What is ${number} + 1$ ?", "solution": rf"It is $\boxed{{{number + 1}}}$."}
    return row | {"level": f"Level {1 + number % 5}", "type": "Algebra"} | changes


@pytest.fixture
def write(tmp_path):
    """Writes rows to a JSONL file and returns its path."""

    def write(name: str, rows: list[dict]) -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs a script with outputs and a cache of its own."""
    env = environment(HF_HOME=str(tmp_path / "hub"), HF_DATASETS_CACHE=str(tmp_path / "cache"))

    def command(script: str, *overrides: object, **options):
        arguments = [f"scripts/{script}.py", f"outputs={tmp_path / 'outputs'}", *overrides]
        return run(*arguments, folder=tmp_path / "logs", env=env, **options)

    return command


# --- from end to end -------------------------------------------------------------------------------------------------


def test_a_model_is_evaluated_on_math500_from_a_file(command, write, tiny_folder, tmp_path):
    rows = [math500_row(n) for n in range(10)]
    rows.append(math500_row(10, problem="so long " * 40))
    path = write("math500.jsonl", rows)
    sets = ["evaluation=math500", f"evaluation.sets.math500.path={path}", "model.prompt.max_length=64"]
    prompt = ["model.prompt.instruction=null"]
    result = command("evaluate", f"checkpoint={tiny_folder}", *sets, *prompt, *SIZES)
    assert result.code == 0, result.stderr
    for column in ("problems", "samples", "pass@1", "pass@2", "truncated", "no answer", "unjudged"):
        assert column in result.stdout
    assert "math500: 1 problems over model.prompt.max_length are left out" in result.stderr + result.stdout
    (folder,) = (tmp_path / "outputs" / "evaluations").iterdir()
    per_problem = pd.read_parquet(folder / "evaluation.parquet")
    assert per_problem["id"].tolist() == [row["unique_id"] for row in rows[:10]]
    assert per_problem["n"].tolist() == [2] * 10
    answers = pd.read_parquet(folder / "completions.parquet")
    assert answers["answer"].tolist() == [row["answer"] for row in rows[:10] for _ in range(2)]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["prompts_too_long"] == {"math500": 1} and summary["failing_golds"] == {"math500": 0}
    assert {f"eval/math500/level_{level}/pass@2" for level in range(1, 6)} < set(summary["metrics"])

    again = run("scripts/regrade.py", f"run={folder}", "grader.num_workers=1", folder=tmp_path / "logs")
    assert again.code == 0 and "verdicts that changed: 0 of 20" in again.stdout


@pytest.fixture
def train(command, write, tiny_folder):
    """Trains for a step on MATH from a file, evaluated on MATH-500 from another; they share five problems."""
    math = write("math.jsonl", [math_row(n) for n in range(8)] + [math_row(8, solution=r"It is $\boxed{\text{}}$.")])
    math500 = write("math500.jsonl", [math500_row(n) for n in range(4, 10)])

    def train(*overrides: object):
        return command(
            "train",
            f"model.name_or_path={tiny_folder}",
            "dataset=math",
            f"dataset.math.path={math}",
            "evaluation=math500",
            f"evaluation.sets.math500.path={math500}",
            "trainer.max_steps=1",
            "trainer.rollouts.num_prompts_per_rollout=2",
            "trainer.num_prompts_per_step=2",
            "trainer.rollouts.num_generations=2",
            "tracking.wandb.mode=disabled",
            "model.prompt.max_length=32",
            *SIZES,
            *overrides,
        )

    return train


def test_training_on_math_reports_the_evaluation_problems_among_its_own(train, tmp_path):
    result = train(f"hydra.run.dir={tmp_path / 'run'}")
    assert result.code == 0, result.stderr
    report = json.loads((tmp_path / "run" / "contamination.json").read_text())
    assert report == {
        "math500": {
            "count": 5,
            "of": 6,
            "by_level": {"1": 1, "2": 1, "3": 1, "4": 1, "5": 1},
            "ids": [f"test/algebra/{n}.json" for n in range(4, 9)],
            "removed": False,
        }
    }
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["contamination"] == {"math500": {k: v for k, v in report["math500"].items() if k != "ids"}}
    assert summary["prompts_too_long"] == {"dataset": 0, "math500": 0}
    assert summary["failing_golds"] == {"dataset": 1, "math500": 0}
    failing = json.loads((tmp_path / "run" / "failing_golds.json").read_text())
    assert [gold["answer"] for gold in failing["dataset"]] == [r"\text{}"] and failing["math500"] == []
    log = (tmp_path / "run" / "train.log").read_text()
    assert "CONTAMINATION: the training set holds 5 of the 6 problems of evaluation set math500" in log
    assert r"can be correct: its gold answer '\\text{}', graded against itself, is no_answer" in log
    rollouts = pd.read_parquet(tmp_path / "run" / "rollouts" / "step_000001.parquet")
    golds = {row["id"]: row["answer"] for row in load_problems("math", path=str(tmp_path / "math.jsonl"))}
    assert rollouts["answer"].tolist() == [golds[id] for id in rollouts["problem_id"]]

    audited = run("scripts/audit_grades.py", f"run={tmp_path / 'run'}", folder=tmp_path / "logs")
    assert audited.code == 0 and "4 answers of rollouts" in audited.stdout


def test_evaluation_problems_are_left_out_of_training_where_the_config_says_so(train, tmp_path):
    run_folder = tmp_path / "run"
    result = train(f"hydra.run.dir={run_folder}", "dataset.decontaminate=true", "check_golds=false")
    assert result.code == 0, result.stderr
    report = json.loads((run_folder / "contamination.json").read_text())["math500"]
    assert (report["count"], report["removed"]) == (5, True)
    log = (run_folder / "train.log").read_text()
    assert "5 problems left out because an evaluation set holds them" in log and "Plan: 4 problems" in log
    assert json.loads((run_folder / "summary.json").read_text())["failing_golds"] == {}


# --- files that cannot be used ---------------------------------------------------------------------------------------

GOOD = math500_row(1)
BAD_ROWS = {
    "a column is missing": ({name: GOOD[name] for name in GOOD if name != "answer"}, "has no column answer, which"),
    "a level outside 1 to 5": (math500_row(2, level=6), "row 2 (rows.jsonl, line 2): level is 6, not 1 to 5"),
    "an id that occurs twice": (GOOD, "row 2 (rows.jsonl, line 2): the id 'test/algebra/1.json' has occurred before"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_rows_that_cannot_be_used_are_one_line_and_exit_code_2(command, write, tiny_folder, tmp_path, name):
    row, message = BAD_ROWS[name]
    path = write("rows.jsonl", [row] if "missing" in name else [GOOD, row])
    result = command(
        "evaluate", f"checkpoint={tiny_folder}", "evaluation=math500", f"evaluation.sets.math500.path={path}"
    )
    assert (result.code, result.one_line()[:70]) == (2, f"error: evaluation.sets.math500.path='{path}': {message}"[:70])
    assert message in result.one_line()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.math.path=gone.jsonl"], "dataset.math.path='gone.jsonl': there is no such file"),
        (["dataset.math.path=tests"], "dataset.math.path='tests': is a folder; give the file in it"),
        (["dataset.math.path=README.md"], "dataset.math.path='README.md': must end in .jsonl, .json, .parquet"),
        (["dataset.math.split=dev"], "dataset.math.split='dev': math has train and test"),
        (["check_golds=maybe"], "check_golds='maybe': must be true or false"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_line_and_exit_code_2(command, tmp_path, overrides, message):
    result = command("train", "dataset=math", *overrides)
    assert result.code == 2 and f"error: {message}" in result.one_line()
    assert not (tmp_path / "outputs").exists()  # no model is made for a run that cannot start


@pytest.mark.slow
def test_a_hub_out_of_reach_is_one_line_that_says_what_to_download_and_where_to_put_it(command, tmp_path):
    result = command("train", "dataset=math", real=True)
    assert result.code == 2
    line = result.one_line()
    assert line.startswith("error: dataset.math.path=None: DigitalLearningGmbH/MATH-lighteval at revision 0530c78")
    assert "set dataset.math.path to the file" in line
    assert not (tmp_path / "outputs").exists()


# --- what an evaluation costs outside generation ---------------------------------------------------------------------


def babble(problems: Dataset, solutions: list[str], samples: int, length: int) -> Rollouts:
    """Answers of words from real solutions in random order, nine of ten with a gold answer of some problem in a box."""
    words, answers = " ".join(solutions).replace(r"\boxed", "").split(), problems["answer"][:]
    rng, total = random.Random(0), len(problems) * samples
    texts = [" ".join(rng.choices(words, k=150)) for _ in range(total)]
    texts = [rf"{text} \boxed{{{rng.choice(answers)}}}" if rng.random() < 0.9 else text for text in texts]
    return Rollouts(
        prompts=[Prompt(id, (1,)) for id in problems["id"]],
        num_generations=samples,
        completion_ids=torch.zeros((total, length), dtype=torch.long),
        logprobs=torch.rand((total, length), generator=torch.Generator().manual_seed(0)).log(),
        lengths=torch.full((total,), length),
        finish_reasons=["stop"] * total,
        texts=texts,
    )


@dataclass
class Parrot:
    """A sampler that repeats what it was given."""

    rollouts: Rollouts

    def sample(self, *arguments: object, **options: object) -> Rollouts:
        return self.rollouts


def cpu_seconds() -> float:
    """Processor time of this process and of those that it has started and that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@pytest.mark.slow
@pytest.mark.skipif("LENS_SHARED" not in os.environ, reason="LENS_SHARED is not set: no real rows to test with")
def test_500_problems_with_16_answers_each_cost_less_than_a_minute_besides_generation(tmp_path):
    path = Path(os.environ["LENS_SHARED"]) / "data" / "math_test_dev.jsonl"
    problems = load_problems("math", path=str(path), split="test")
    solutions = [json.loads(line)["solution"] for line in path.read_text(encoding="utf-8").splitlines()]
    rollouts = babble(problems, solutions, samples=16, length=512)
    evaluator = Evaluator([EvaluationSet("dev", problems, rollouts.prompts)], 16, 1.0, 1.0, 512, by_level=True)
    started, used = time.perf_counter(), cpu_seconds()
    with Grader() as grader:
        per_problem, answers = evaluator.evaluate(Parrot(rollouts), grader, seed=0)
        compute_metrics(per_problem), make_table(per_problem)
        write_parquet(tmp_path / "evaluation.parquet", per_problem)
        write_parquet(tmp_path / "completions.parquet", answers)
    seconds, used = time.perf_counter() - started, cpu_seconds() - used
    print(f"\n{len(answers):,} answers: {seconds:.1f} s, {used:.1f} s of processor time")
    assert len(answers) == 8000
    assert answers["text"].map(last_boxed).notna().mean() > 0.85
    assert used < 60  # of two workers and this process together; the clock would tell of what else the machine does
