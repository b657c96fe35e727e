"""Training models whose layers or heads are not a Llama's: they work, or one line says what to choose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lens.models.architectures import make_random_model
from lens.models.tiny import make_tokenizer
from tests.support.command_line import run, training

# Layers with a state, no limit of positions, a text model inside another, another name for the decoder, a soft cap.
WORKING = ["lfm2", "qwen3_next", "bamba", "mamba", "gemma3", "llama4_text", "gemma2"]
REFUSED = {"recurrent_gemma": "RecurrentGemmaForCausalLM", "minimax": "MiniMaxForCausalLM"}


def make_folder(name: str, folder: Path) -> Path:
    """A tiny random model of an architecture, with the tokenizer of the embedded model."""
    tokenizer = make_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = make_random_model(name, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ids)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return folder / name


def short_run(model: Path, folder: Path) -> list[object]:
    """One update with an evaluation before and after."""
    sizes = {"max_steps": 1, "num_prompts_per_rollout": 2, "num_prompts_per_step": 2, "num_generations": 2}
    lengths = ["trainer.rollouts.max_completion_length=12", "evaluation.max_completion_length=12"]
    fewer = [
        "trainer.rollouts.old_logprobs=trainer",
        "evaluation.num_samples=1",
        f"hydra.run.dir={folder / 'run'}",
        "optimizer.learning_rate=1e-3",
    ]
    return training(model, folder, *lengths, *fewer, "objective=uniform", **sizes)


@pytest.mark.parametrize("name", WORKING)
def test_a_model_of_another_kind_trains_and_its_checkpoint_evaluates(name, tmp_path):
    result = run(*short_run(make_folder(name, tmp_path), tmp_path), folder=tmp_path / "logs")
    assert result.code == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    (step,) = [line for line in lines if "grad_norm" in line]
    assert step["grad_norm"] > 0 and step["sampling/logp_difference_max"] < 1e-3
    if name in ("lfm2", "gemma3"):
        evaluated = run("scripts/evaluate.py", f"checkpoint={tmp_path / 'run'}", folder=tmp_path / "logs")
        assert evaluated.code == 0, evaluated.stderr


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_the_embedded_engine_cannot_decode_is_refused_in_one_line(name, tmp_path):
    result = run(*short_run(make_folder(name, tmp_path), tmp_path), folder=tmp_path / "logs")
    assert result.code == 2
    (line,) = result.errors()
    assert line.startswith("error: sampler='transformers': must be vllm") and REFUSED[name] in line
