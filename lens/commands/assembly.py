"""Makes the parts that several commands need from a composed config: model, evaluator, rollout engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lens.distributed.collectives import Interruptible, is_first, world_size
from lens.errors import ConfigError
from lens.evaluation.evaluator import EvaluationSet, Evaluator
from lens.grading.golds import check_verifiers, name_failing_golds
from lens.grading.pool import Grader
from lens.models.loading import check_model
from lens.models.tiny import FIRST_WORLD, make_tiny
from lens.problems.mixture import check_files
from lens.problems.prompts import Prompt, PromptFormat, encode_problems
from lens.problems.worlds import find_world, list_worlds
from lens.sampling.parallel_sampler import ParallelSampler
from lens.sampling.rollouts import Sampler

log = logging.getLogger(__name__)
disable_progress_bars()  # those of datasets would break a command's own bars and its one line


def check_inputs(config: DictConfig) -> None:
    """Refuse a config whose model, problem files or rollout engine are missing, before anything is read or made.

    Raises:
        ConfigError: the first thing that is missing.
    """
    model = config.model
    check_model_source(model)
    check_files(config.dataset, "dataset")
    check_files(config.evaluation.sets, "evaluation.sets")
    if model.name_or_path is None and model.recipe is not None:
        world = model.recipe.get("world", FIRST_WORLD)
        find_world(world, "model.recipe.world")
        check_world(world, config.dataset, "dataset")
        check_world(world, config.evaluation.sets, "evaluation.sets")
    check_engine(config.sampler._target_)


def check_model_source(model: DictConfig) -> None:
    """Refuse a model that is yet to be fetched, cannot be found, or needs code of its own.

    ``model`` is the config's model section.

    Raises:
        ConfigError: it is one of these.
    """
    if model.fetch is not None and not Path(model.name_or_path).exists():
        command = f"python scripts/fetch_model.py model={HydraConfig.get().runtime.choices.model}"
        raise ConfigError("model.name_or_path", model.name_or_path, f"must be a folder; `{command}` makes it")
    if model.name_or_path is not None:
        check_model(model.name_or_path)


def check_world(world: str, sources: Mapping[str, Any], key: str) -> None:
    """Refuse problems of another world than the tiny model's: it knows no other words.

    Args:
        world: the world of the tiny model.
        sources: sections of a config. Those with a ``source`` name where problems come from.
        key: where they stand in the config.

    Raises:
        ConfigError: a source is another world.
    """
    others = [other for other in list_worlds() if other != world]
    for name, section in sources.items():
        if isinstance(section, Mapping) and section.get("source") in others:
            valid = f"must be {world}, as the tiny model knows no other words; world=NAME chooses both together"
            raise ConfigError(f"{key}.{name}.source", section["source"], valid)


def check_engine(target: str) -> None:
    """Import the module of a rollout engine; vLLM's says itself that vLLM is missing, which Hydra would hide.

    Raises:
        ConfigError: there is no such module, or it needs a package that is missing.
    """
    try:
        import_module(target.rpartition(".")[0])
    except ImportError as error:
        raise ConfigError("sampler._target_", target, f"must be a class that can be imported ({error})") from error


def use_threads(number: int | None) -> None:
    """Set the number of threads that torch computes with in this process; None changes nothing."""
    if number is not None:
        torch.set_num_threads(number)


def loading_options(config: DictConfig) -> dict[str, Any]:
    """Return the options with which `load_model` loads a config's model."""
    return {"dtype": config.model.dtype, "attention": config.model.attention, "stop": list(config.model.stop)}


def model_path(config: DictConfig) -> str:
    """Return the name or folder of the config's model; make the tiny model first if it does not exist yet.

    Raises:
        ConfigError: the config has neither a name nor a recipe.
    """
    if config.model.name_or_path is not None:
        return config.model.name_or_path
    if config.model.recipe is None:
        raise ConfigError("model.name_or_path", None, "must be a Hugging Face name or folder")
    return str(make_tiny(instantiate(config.model.recipe), Path(config.outputs) / "models"))


def make_evaluator(config: DictConfig, raw_sets: dict[str, Dataset], tokenizer: PreTrainedTokenizerBase) -> Evaluator:
    """Make the evaluator of a config, and encode its prompts as ``model.prompt`` says.

    Raises:
        ConfigError: evaluation.by_level is true, but a set has no levels.
    """
    settings, sets = config.evaluation, []
    for name, problems in raw_sets.items():
        if settings.by_level and not any(level is not None for level in problems["level"]):
            raise ConfigError("evaluation.by_level", True, f"must be false, as the set {name!r} has no levels")
        fitting, prompts, too_long = encode_problems(problems, tokenizer, PromptFormat(**config.model.prompt))
        if too_long:
            log.warning("%s: %d problems over model.prompt.max_length are left out", name, too_long)
        sets.append(EvaluationSet(name, fitting, prompts, too_long))
    return Evaluator(
        sets,
        num_samples=settings.num_samples,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_completion_length=settings.max_completion_length,
        by_level=settings.by_level,
        every=settings.get("every", 0),
    )


def longest_sequence(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    max_completion_length: int,
    key: str = "trainer.rollouts.max_completion_length",
) -> int:
    """Return the number of tokens of the longest prompt and the longest answer it may get.

    Args:
        model: the model that reads them.
        prompts: the encoded prompts.
        max_completion_length: the most tokens of an answer.
        key: the config key of that number, for the message.

    Raises:
        ConfigError: the model does not have that many positions. Some models have no limit.
    """
    longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
    needed = len(longest.token_ids) + max_completion_length
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and needed > limit:
        valid = (
            f"must be at most {limit - len(longest.token_ids)}: the model's limit is {limit} tokens, and the longest "
            f"prompt, {longest.problem_id}, has {len(longest.token_ids)}; or make model.prompt.max_length smaller"
        )
        raise ConfigError(key, max_completion_length, valid)
    return needed


def longest_evaluation_sequence(model: PreTrainedModel, evaluator: Evaluator) -> int:
    """Return the `longest_sequence` of all evaluation sets."""
    length, key = evaluator.max_completion_length, "evaluation.max_completion_length"
    return max(longest_sequence(model, s.prompts, length, key) for s in evaluator.sets)


@contextmanager
def make_sampler(
    settings: DictConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    interruptible: Interruptible = nullcontext,
) -> Iterator[Sampler]:
    """Yield a rollout engine, and close it in the end.

    Args:
        settings: the config's sampler section.
        model, tokenizer: the policy's.
        longest: tokens of the longest sequence, for engines that reserve memory by it.
        interruptible: makes a context manager for work that waits for no other process; see `StopSignals`.
    """
    reserved = {"max_model_len": longest} if settings.get("max_model_len", longest) is None else {}
    sampler = instantiate(settings, model=model, tokenizer=tokenizer, **reserved)
    try:
        per_engine = settings.get("tensor_parallel_size", 1)
        yield sampler if world_size() == 1 else ParallelSampler(sampler, per_engine, interruptible)
    finally:
        sampler.close()


def find_failing_golds(
    config: DictConfig, grader: Grader, sets: Mapping[str, Dataset]
) -> dict[str, list[dict[str, str]]]:
    """Return what `name_failing_golds` finds; nothing if ``check_golds`` is false, or in processes after the first.

    Raises:
        ConfigError: the problems' own verifiers cannot judge them.
    """
    if is_first():
        check_verifiers(grader, sets)
    return name_failing_golds(grader, sets) if config.check_golds and is_first() else {}


def list_problems(evaluator: Evaluator) -> dict[str, Dataset]:
    """Return the problems of each evaluation set, by its name."""
    return {evaluation_set.name: evaluation_set.problems for evaluation_set in evaluator.sets}


def count_too_long(evaluator: Evaluator) -> dict[str, int]:
    """Return how many problems of each evaluation set were left out because their prompts are too long."""
    return {evaluation_set.name: evaluation_set.too_long for evaluation_set in evaluator.sets}
