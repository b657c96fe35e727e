"""Evaluates a checkpoint or any model, with the same code as evaluations during training."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lens.commands.assembly import (
    count_too_long,
    find_failing_golds,
    list_problems,
    loading_options,
    longest_evaluation_sequence,
    make_evaluator,
    make_sampler,
    use_threads,
)
from lens.config.checks import check_values
from lens.distributed.collectives import is_first
from lens.errors import ConfigError
from lens.evaluation.scores import compute_metrics, make_table
from lens.files import write_json, write_parquet
from lens.grading.golds import count_failing
from lens.grading.parallel_grader import ParallelGrader
from lens.models.loading import load_model
from lens.models.precision import settle_precision
from lens.models.sharding import gather_named_weights, shard_model
from lens.problems import load_evaluation_sets
from lens.runs import checkpoints
from lens.runs.run import SUMMARY, read_config
from lens.seeding import derive_seed
from lens.terminal import show_table


def evaluate(config: DictConfig, folder: Path) -> pd.DataFrame:
    """Evaluate a run's latest checkpoint, a checkpoint or any model, with the same code as during training.

    Prints pass@k by level with intervals, and writes a row per problem and every answer to the folder. A run's prompt
    format, what ends an answer, and its maximum length come from its own config.

    Returns:
        A row per problem.

    Raises:
        ConfigError: a value that cannot work.
    """
    run, checkpoint = locate_checkpoint(config.checkpoint)
    if run is not None:
        trained = read_config(run, "checkpoint")
        config.model.prompt = OmegaConf.merge(config.model.prompt, trained.model.prompt)  # older runs lack newer keys
        config.model.stop = trained.model.get("stop", config.model.stop)
        config.trainer.rollouts.max_completion_length = trained.trainer.rollouts.max_completion_length
    settle_precision(config)  # before the engine takes what model.dtype is
    check_values(config)
    use_threads(config.trainer.memory.num_threads)
    raw_sets = load_evaluation_sets(config.evaluation.sets)
    model, tokenizer = load_model(checkpoint, **loading_options(config), key="checkpoint")
    evaluator = make_evaluator(config, raw_sets, tokenizer)
    with ExitStack() as stack:
        grader = stack.enter_context(instantiate(config.grader))
        failing = find_failing_golds(config, grader, list_problems(evaluator))
        sampler = stack.enter_context(
            make_sampler(config.sampler, model, tokenizer, longest_evaluation_sequence(model, evaluator))
        )
        shard_model(model)
        sampler.sync(gather_named_weights(model))
        seed = derive_seed(config.seed, "evaluation")
        per_problem, answers = evaluator.evaluate(sampler, ParallelGrader(grader), seed, show_progress=is_first())
    if not is_first():
        return per_problem
    write_parquet(folder / "evaluation.parquet", per_problem)
    write_parquet(folder / "completions.parquet", answers)
    metrics = compute_metrics(per_problem, by_level=evaluator.by_level)
    write_json(folder / "failing_golds.json", failing)
    counts = {"failing_golds": count_failing(failing), "prompts_too_long": count_too_long(evaluator)}
    write_json(folder / SUMMARY, {"checkpoint": checkpoint, "dtype": config.model.dtype, "metrics": metrics, **counts})
    table = make_table(per_problem, by_level=evaluator.by_level)
    show_table(f"{checkpoint}: pass@k in %, 95 % bootstrap interval over problems", table)
    print(f"rows and answers: {folder}")
    return per_problem


def locate_checkpoint(checkpoint: str) -> tuple[Path | None, str]:
    """Return the run folder that a checkpoint belongs to (or None), and the model's name or folder.

    Raises:
        ConfigError: the run folder has no checkpoint.
    """
    path = Path(checkpoint)
    if (path / ".hydra").is_dir():
        found = checkpoints.list_checkpoints(path / "checkpoints")
        if not found:
            raise ConfigError("checkpoint", checkpoint, "must be a run folder with a checkpoint")
        return path, str(found[-1])
    in_run = path.parent.name == "checkpoints" and (path.parent.parent / ".hydra").is_dir()
    return (path.parent.parent if in_run else None), checkpoint
