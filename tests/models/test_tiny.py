"""The embedded model: a tokenizer that loses nothing, a folder that anybody loads, made once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lens.errors import ConfigError
from lens.models.tiny import IGNORED, TinyRecipe, make_lessons, make_model, make_tiny, make_tokenizer, warm_start
from lens.problems.prompts import PromptFormat
from lens.problems.worlds import arithmetic, list_worlds
from lens.problems.worlds.drawing import SPLIT_SHARES
from tests.support.reasoning_gym import worlds_that_can_be_made

SMALLEST = TinyRecipe(hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, steps=1, batch_size=2)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_folder)


# --- tokenizer ---


def assert_round_trip(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    encoded = tokenizer(texts, add_special_tokens=False).input_ids
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)
    assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == texts


@pytest.mark.parametrize("split", SPLIT_SHARES)
def test_every_problem_survives_the_tokenizer(tokenizer, split):
    problems = [
        arithmetic.fill_in(template, operands)
        for template in arithmetic.TEMPLATES
        for operands in arithmetic.operand_pool(template, split)
    ]
    assert len(problems) > 3000
    assert_round_trip(tokenizer, problems)


def test_every_solution_of_the_teacher_survives_the_tokenizer(tokenizer):
    solutions = {
        arithmetic.write_solution(arithmetic.steps_of(procedure, operands))
        for template in arithmetic.TEMPLATES
        for operands in arithmetic.operand_pool(template, "train")
        for procedure in template.procedures
    }
    assert len(solutions) > 10_000
    assert_round_trip(tokenizer, sorted(solutions))
    rng = random.Random(0)
    assert_round_trip(tokenizer, [arithmetic.teach(rng, slip_rate=1.0)[1] for _ in range(500)])


def test_the_vocabulary_names_each_word_once(tokenizer):
    words = arithmetic.vocabulary()
    assert len(set(words)) == len(words)
    assert len(tokenizer) == len(words) + 5  # four special tokens and the separator
    assert words == arithmetic.vocabulary()


def test_the_chat_template_frames_the_problem(tokenizer):
    words = ["Compute", "$", "12", "+", "13", "-", "4", "$", "."]
    prompt = PromptFormat().encode(" ".join(words), tokenizer)
    assert tokenizer.convert_ids_to_tokens(prompt) == ["<bos>", *words, "<sep>"]


def test_lessons_teach_the_solution_after_the_prompt_that_training_uses(tokenizer):
    ids, labels = make_lessons(tokenizer, random.Random(0), 20)
    rng = random.Random(0)
    for row in range(20):
        problem, solution = arithmetic.teach(rng)
        prompt = PromptFormat().encode(problem, tokenizer)
        answer = tokenizer.convert_tokens_to_ids([*solution.split(), "<eos>"])
        end = len(prompt) + len(answer)
        assert ids[row].tolist() == [*prompt, *answer] + [tokenizer.pad_token_id] * (ids.shape[1] - end)
        assert labels[row].tolist() == [IGNORED] * len(prompt) + answer + [IGNORED] * (ids.shape[1] - end)


# --- recipe and folder ---


@pytest.mark.parametrize("name", [field.name for field in fields(TinyRecipe)])
def test_the_key_changes_with_every_part_of_the_recipe(name):
    recipe = TinyRecipe()
    changed = replace(recipe, **{name: "countdown" if name == "world" else getattr(recipe, name) * 2 + 1})
    assert changed.key() != recipe.key()
    assert replace(changed, **{name: getattr(recipe, name)}).key() == recipe.key()


def test_arithmetic_is_what_it_was_when_there_was_no_other_world():
    """Published runs started with these models: their folders, words and lessons stay."""
    assert TinyRecipe().key() == "978e5eefdc"
    rng = random.Random(0)
    lessons = repr([arithmetic.teach(rng) for _ in range(200)])
    assert hashlib.sha256(lessons.encode()).hexdigest()[:16] == "9144018b117bd929"
    words = repr(sorted(make_tokenizer().get_vocab().items()))
    assert hashlib.sha256(words.encode()).hexdigest()[:16] == "fadfc73cada29545"


@pytest.mark.parametrize("world", worlds_that_can_be_made(list_worlds()))
def test_a_model_of_any_world_is_made_on_its_lessons(tmp_path, world):
    recipe = replace(SMALLEST, world=world)
    folder = make_tiny(recipe, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert json.loads((folder / "recipe.json").read_text())["world"] == world
    assert folder.name == f"tiny-{recipe.key()}"
    ids, labels = make_lessons(tokenizer, random.Random(0), 50, world)
    assert tokenizer.unk_token_id not in ids
    assert (labels == tokenizer.convert_tokens_to_ids(r"\boxed{")).sum(dim=1).tolist() == [1] * 50


def test_a_recipe_of_no_world_is_refused():
    with pytest.raises(ConfigError, match=r"model\.recipe\.world='atlantis': must be one of arithmetic, countdown"):
        TinyRecipe(world="atlantis")


def test_the_folder_is_in_hugging_face_format(tiny_folder, tiny_recipe):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.hidden_size == tiny_recipe.hidden_size
    for name in ("bos", "eos", "pad"):
        assert getattr(model.config, f"{name}_token_id") == getattr(tokenizer, f"{name}_token_id") is not None
    assert list(tiny_folder.glob("*.safetensors"))
    assert tiny_folder.name == f"tiny-{tiny_recipe.key()}"
    recipe = json.loads((tiny_folder / "recipe.json").read_text())
    assert TinyRecipe(**{field.name: recipe[field.name] for field in fields(TinyRecipe)}) == tiny_recipe


def test_the_warm_start_learns_from_the_teacher(tiny_folder, tiny_recipe):
    loss = json.loads((tiny_folder / "recipe.json").read_text())["final_loss"]
    assert loss < 0.75 * torch.tensor(len(make_tokenizer())).log().item()  # a model that knows nothing has log(V)


def test_the_same_recipe_makes_the_same_model(tiny_recipe):
    tokenizer = make_tokenizer()
    recipe = replace(tiny_recipe, steps=2, batch_size=4)
    states = []
    for seed in (0, 0, 1):
        recipe = replace(recipe, seed=seed)
        model = make_model(recipe, tokenizer)
        warm_start(model, tokenizer, recipe)
        states.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("steps", [0, 1])
def test_a_model_may_stay_as_good_as_untrained(tmp_path, steps):
    folder = make_tiny(replace(SMALLEST, steps=steps), tmp_path)
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 8
    loss = json.loads((folder / "recipe.json").read_text())["final_loss"]
    assert loss is None if steps == 0 else loss > 0


def test_a_model_is_made_once(tmp_path):
    folder = make_tiny(SMALLEST, tmp_path)
    (folder / "mark").touch()
    assert make_tiny(SMALLEST, tmp_path) == folder
    assert (folder / "mark").exists()
    assert make_tiny(replace(SMALLEST, seed=1), tmp_path) != folder
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_what_an_interrupted_process_left_is_no_obstacle(tmp_path):
    left = tmp_path / f"tiny-{SMALLEST.key()}.unfinished"
    left.mkdir()
    (left / "config.json").write_text("half of a")
    folder = make_tiny(SMALLEST, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 8
    assert not left.exists()


def test_two_processes_at_once_make_one_model(tmp_path, caplog):
    script = (
        "import logging, pathlib, sys\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "from lens.models.tiny import TinyRecipe, make_tiny\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        f"print(make_tiny({SMALLEST!r}, pathlib.Path({str(tmp_path)!r})))\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONHASHSEED": "7"}  # the key must not hang on it
    with (
        subprocess.Popen([sys.executable, "-c", script], env=environment, **pipes) as other,
        caplog.at_level(logging.INFO, logger="lens.models.tiny"),
    ):
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        folder = make_tiny(SMALLEST, tmp_path)
        stdout, stderr = other.communicate(timeout=120)
    assert other.returncode == 0
    assert stdout.strip() == str(folder)
    assert (caplog.text + stderr).count("Making the tiny model") == 1
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 8
