"""Teaches a model worked solutions before reinforcement learning, with prompts as reinforcement learning has them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lens.commands.assembly import check_model_source, loading_options, model_path, use_threads
from lens.config.checks import at_least, check_values
from lens.distributed.collectives import world_size
from lens.errors import ConfigError
from lens.files import write_json
from lens.models.allocator import keep_freed_memory
from lens.models.layers import check_layers
from lens.models.loading import load_model
from lens.models.logprobs import ForwardPass
from lens.models.precision import settle_precision
from lens.problems.math import load_solutions
from lens.problems.mixture import check_files
from lens.problems.prompts import Prompt, PromptFormat, encode_problems
from lens.progress import progress_bar
from lens.runs.provenance import describe_provenance
from lens.sampling.rollouts import Rollouts
from lens.training.supervised import teach

log = logging.getLogger(__name__)

RULES = {name: at_least(1) for name in ("steps", "batch_size", "max_solution_length")}
RECORD = "warm_up.json"


def warm_up(config: DictConfig) -> Path:
    """Teach a model the worked solutions of its training problems, save it in a new folder, and return the folder.

    Raises:
        ConfigError: a value cannot work, the folder exists, or a source has no worked solutions.
    """
    into = Path(config.into)
    if into.exists():
        raise ConfigError("into", str(into), "must be a folder that does not exist yet")
    check_values(config)
    check_values(config, RULES)
    if config.model.dtype != "float32" or config.model.lora:
        key, value = ("model.lora", "adapters") if config.model.lora else ("model.dtype", config.model.dtype)
        raise ConfigError(key, value, f"must be {'null' if config.model.lora else 'float32'}: all weights are trained")
    if world_size() > 1:
        raise ConfigError("num_processes", world_size(), "must be 1: the warm-up runs in one process")
    check_model_source(config.model)
    check_files(config.dataset, "dataset")
    settle_precision(config)
    use_threads(config.trainer.memory.num_threads)
    model, tokenizer = load_model(model_path(config), **loading_options(config))
    check_layers(model, config.trainer.memory)
    lessons = make_lessons(config, tokenizer)
    if config.batch_size > len(lessons.lengths):
        raise ConfigError(
            "batch_size", config.batch_size, f"must be at most {len(lessons.lengths)}, the solutions left"
        )
    memory = OmegaConf.to_container(config.trainer.memory)
    forward_pass = ForwardPass(1.0, **{name: value for name, value in memory.items() if name != "num_threads"})
    keep_freed_memory()
    losses = []
    with progress_bar(config.steps, desc="warm-up") as bar:
        choices = {name: config[name] for name in ("steps", "batch_size", "seed")}
        for loss in teach(model, lessons, forward_pass, config.optimizer, **choices):
            losses.append(loss)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
    log.info("Loss of the first update %.3f, of the last %.3f nats a token", losses[0], losses[-1])
    save(model, tokenizer, into, {"solutions": len(lessons.lengths), "losses": losses}, config)
    return into


def make_lessons(config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> Rollouts:
    """Encode the training problems, each with its worked solution and an end token.

    Raises:
        ConfigError: a source has no worked solutions, or all prompts or all solutions are too long.
    """
    problems, _ = instantiate(config.dataset)({})
    solutions = {}
    for name, node in config.dataset.items():
        if OmegaConf.is_dict(node):
            if node.source != "math":
                raise ConfigError(
                    f"dataset.{name}.source", node.source, "must be math: others have no worked solutions"
                )
            where = {key: node[key] for key in ("path", "split", "repo", "revision", "streaming")}
            solutions |= load_solutions(**where, key=f"dataset.{name}")
    problems, prompts, _ = encode_problems(problems, tokenizer, PromptFormat(**config.model.prompt))
    texts = [solutions[prompt.problem_id.partition("-")[0]] for prompt in prompts]  # a text that comes again: its first
    encoded = [
        (prompt, text, [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id])
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    fitting = [lesson for lesson in encoded if len(lesson[-1]) <= config.max_solution_length]
    log.info("%d of %d solutions have at most %d tokens", len(fitting), len(encoded), config.max_solution_length)
    if not fitting:
        shortest = min(len(ids) for _, _, ids in encoded)
        raise ConfigError(
            "max_solution_length", config.max_solution_length, f"must be at least {shortest}, the shortest"
        )
    return pair_up(fitting)


def pair_up(lessons: list[tuple[Prompt, str, list[int]]]) -> Rollouts:
    """Return prompts, their solutions and the token ids of these as rollouts of one answer each."""
    prompts, texts, answers = zip(*lessons, strict=True)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True)
    return Rollouts(
        prompts=prompts,
        num_generations=1,
        completion_ids=ids,
        logprobs=torch.zeros(ids.shape),
        lengths=torch.tensor([len(answer) for answer in answers]),
        finish_reasons=["stop"] * len(prompts),
        texts=texts,
    )


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, into: Path, record: dict, config: DictConfig
) -> None:
    """Write model, tokenizer and how they were made; the folder gets its name when it is whole."""
    unfinished = into.with_name(f"{into.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    made = {"config": OmegaConf.to_container(config, resolve=True), "provenance": describe_provenance()}
    write_json(unfinished / RECORD, record | made)
    unfinished.rename(into)
