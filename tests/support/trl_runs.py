"""Runs of TRL's real trainer on a tiny model, and the plain computation of what its batches should hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from lens.integrations.trl import LensGRPOTrainer

GENERATIONS = 4
PROMPTS = [f"<bos> {n} plus {m} <sep>" for n, m in ((3, 4), (12, 9), (7, 5), (2, 20))]


def verdict(completion_ids: list[list[int]], **others: Any) -> list[float]:
    """An answer is right if the sum of its tokens is divisible by four: groups of every kind come about."""
    return [float(sum(ids) % 4 == 0) for ids in completion_ids]


def short(completion_ids: list[list[int]], **others: Any) -> list[float | None]:
    """A second reward that is no verdict; answers of one token have none."""
    return [None if len(ids) == 1 else 1 / len(ids) for ids in completion_ids]


class Recording(LensGRPOTrainer):
    """Keeps each generation batch, with the log-probabilities that the policy of that moment gives its answers.

    It counts the policy's passes over a generation batch that are there for log-probabilities alone.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.batches: list[dict[str, Any]] = []
        self.passes = 0

    def _get_per_token_logps_and_entropies(self, model: Any, *arguments: Any, **options: Any) -> tuple:
        self.passes += model is self.model and not torch.is_grad_enabled()
        return super()._get_per_token_logps_and_entropies(model, *arguments, **options)

    def _generate_and_score_completions(self, inputs: list) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        kept = {name: value.clone() for name, value in batch.items() if isinstance(value, Tensor)}
        self.batches.append(kept | {"plain": plain_logprobs(self, batch), "ids": self.ids, "kinds": self.kinds})
        return batch

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids: list) -> Tensor:
        self.ids, self.kinds = completion_ids, prompts
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids)


def plain_logprobs(trainer: LensGRPOTrainer, batch: dict[str, Any]) -> list[Tensor]:
    """The log-probabilities of each answer's tokens, from all logits, each answer alone and without padding."""
    rows = []
    for n in range(len(batch["prompt_ids"])):
        prompt = batch["prompt_ids"][n][batch["prompt_mask"][n].bool()]
        answer = torch.tensor(trainer.ids[n])
        with torch.no_grad():
            hidden = trainer.accelerator.unwrap_model(trainer.model)(torch.cat([prompt, answer])[None])
        table = (hidden.logits[0, len(prompt) - 1 : -1] / trainer.temperature).double().log_softmax(dim=-1)
        rows.append(table[torch.arange(len(answer)), answer])
    return rows


def make_trainer(
    folder: Path, output: Path, *, config: dict | None = None, kind: type = Recording, **options: Any
) -> Any:
    """A trainer of the tiny model: four prompts, four answers each, one update."""
    values = {
        "output_dir": str(output),
        "max_steps": 1,
        "per_device_train_batch_size": 16,
        "num_generations": GENERATIONS,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "temperature": 1.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return kind(
        model,
        options.pop("reward_funcs", verdict),
        args=GRPOConfig(**values | (config or {})),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 8}),
        processing_class=AutoTokenizer.from_pretrained(folder),
        **options,
    )
