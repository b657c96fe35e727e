"""Train a model in TRL with LENS in place of GRPO's advantages.

    pip install "lens-rl[trl]"
    python examples/trl_lens.py MODEL --steps 100      # MODEL: a folder, or a name on the hub

`objective=` takes any name of lens, such as "uniform"; "grpo" is the baseline on the same code path.
"""

import argparse
import random
import re

import torch
from datasets import Dataset
from trl import GRPOConfig

from lens.integrations.trl import LensGRPOTrainer


def make_question() -> dict[str, str]:
    a, b = random.randint(10, 99), random.randint(10, 99)
    return {"prompt": f"Question: What is {a} * {b}?\nAnswer:", "answer": str(a * b)}


def is_correct(completions: list[str], answer: list[str], **columns) -> list[float]:
    """The verdict: 1 if the last number of an answer is the right one, else 0."""
    last_numbers = [re.findall(r"\d+", text)[-1:] for text in completions]
    return [float(numbers == [right]) for numbers, right in zip(last_numbers, answer, strict=True)]


parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--objective", default="lens")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--output", default="outputs/trl")
arguments = parser.parse_args()
on_gpu = torch.cuda.is_available()

trainer = LensGRPOTrainer(
    model=arguments.model,
    reward_funcs=is_correct,
    objective=arguments.objective,
    args=GRPOConfig(
        output_dir=arguments.output,
        max_steps=arguments.steps,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=64,
        learning_rate=1e-6,
        logging_steps=1,
        report_to="none",
        use_cpu=not on_gpu,
        bf16=on_gpu,
    ),
    train_dataset=Dataset.from_list([make_question() for _ in range(1000)]),
)
trainer.train()
