"""A run in TRL ends as accurate as the same run in lens: LENS_TRL_SEEDS=0,1,2 make test-trl-accuracy.

Both train the tiny experiment's model for its 60 updates. The evaluation is the same command for both.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from lens.files import SOURCE
from lens.grading import Grader
from lens.problems import load_problems

pytest.importorskip("trl", reason="TRL is not installed here: make test-trl-accuracy")
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from lens.integrations.trl import LensGRPOTrainer

SEEDS = [int(seed) for seed in os.environ.get("LENS_TRL_SEEDS", "0").split(",")]
SPREAD = 2.7  # points of pass@1: the standard deviation of the difference of two runs of this experiment
QUANTILE = 2.6  # of 99 %
PASS_1 = "eval/arithmetic/pass@1"
CONFIG = {
    "max_steps": 60,
    "per_device_train_batch_size": 256,  # 32 questions
    "num_generations": 8,
    "max_completion_length": 26,
    "temperature": 1.0,
    "loss_type": "grpo",
    "epsilon": 0.2,
    "beta": 0.0,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch",
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 10,
}


def script(name: str, *overrides: str) -> str:
    """What a command of lens prints; it must end well."""
    variables = os.environ | {"PYTHONPATH": str(SOURCE)}
    command = [sys.executable, SOURCE / "scripts" / f"{name}.py", *overrides]
    result = subprocess.run(command, cwd=SOURCE, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def accuracy(folder: Path) -> float:
    """pass@1 in percent, from the summary of a run or an evaluation."""
    return 100 * json.loads((folder / "summary.json").read_text())["metrics"][PASS_1]


def accuracy_in_lens(seed: int, folder: Path) -> float:
    run = folder / f"lens-{seed}"
    choices = ("experiment=tiny", "objective=lens", f"seed={seed}", "evaluation.every=0")
    script("train", *choices, f"outputs={folder}", f"hydra.run.dir={run}")
    return accuracy(run)


def accuracy_in_trl(model: str, seed: int, folder: Path) -> float:
    output = folder / f"trl-{seed}"
    problems = load_problems("arithmetic", split="train", size=32 * CONFIG["max_steps"], seed=seed)
    asked = [[{"role": "user", "content": problem}] for problem in problems["problem"]]
    tokenizer = AutoTokenizer.from_pretrained(model)
    with Grader(num_workers=1) as grader:

        def correct(completion_ids: list[list[int]], answer: list[str], **others: Any) -> list[float]:
            texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
            return [float(grade.correct) for grade in grader.grade(texts, answer)]

        trainer = LensGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            correct,
            args=GRPOConfig(output_dir=str(output), seed=seed, **CONFIG),
            train_dataset=Dataset.from_dict({"prompt": asked, "answer": problems["answer"]}),
            processing_class=tokenizer,
        )
        trainer.train()
        trainer.save_model(str(output / "model"))
    of_tiny = ("model=tiny", "model.name_or_path=${checkpoint}", "trainer.rollouts.max_completion_length=26")
    script("evaluate", f"checkpoint={output / 'model'}", *of_tiny, f"hydra.run.dir={output / 'evaluation'}")
    return accuracy(output / "evaluation")


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_run_in_trl_ends_as_accurate_as_in_lens(tmp_path):
    model = script("make_tiny", f"outputs={tmp_path}").strip().splitlines()[-1]
    pairs = [(accuracy_in_trl(model, seed, tmp_path), accuracy_in_lens(seed, tmp_path)) for seed in SEEDS]
    for seed, (in_trl, in_lens) in zip(SEEDS, pairs, strict=True):
        print(f"seed {seed}: pass@1 {in_trl:.1f} % in TRL, {in_lens:.1f} % in lens")
    difference = sum(in_trl - in_lens for in_trl, in_lens in pairs) / len(pairs)
    allowed = QUANTILE * SPREAD / math.sqrt(len(pairs))
    print(f"difference {difference:+.1f} points over {len(pairs)} seeds, {allowed:.1f} allowed")
    assert min(in_trl for in_trl, _ in pairs) > 40  # before training it is 26
    assert abs(difference) < allowed
