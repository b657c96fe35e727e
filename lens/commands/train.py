"""Trains one model: makes the parts that a config names, and runs the loop."""

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress
from dataclasses import fields
from pathlib import Path

import torch
from datasets import disable_progress_bars
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lens.commands.assembly import (
    check_fetched,
    evaluator_needs,
    failing_golds,
    loading,
    longest_sequence,
    make_evaluator,
    make_sampler,
    model_path,
    problems_of,
    too_long_of,
)
from lens.config.checks import check_objective, check_training, check_values
from lens.distributed.collectives import barrier, is_first, world_size
from lens.distributed.stop_signals import StopSignals
from lens.errors import ConfigError, RunFailed
from lens.evaluation.evaluator import Evaluator
from lens.files import replacing, write_json
from lens.grading.golds import count_all
from lens.grading.shared import SharedGrader
from lens.models.layers import check_layers
from lens.models.loading import load_model
from lens.models.lora import add_adapters, check_adapters, load_adapters
from lens.models.sharding import shard
from lens.problems import load_evaluation_sets
from lens.problems.decontamination import without_ids
from lens.problems.prompts import PromptFormat, encode_problems
from lens.runs import checkpoints
from lens.runs.provenance import provenance
from lens.runs.resuming import copy_history, find_state, finished_summary
from lens.runs.run import FAILURE, PROVENANCE
from lens.runs.tracker import SilentTracker, Tracker
from lens.runs.wandb_account import resolve_wandb_mode
from lens.seeding import derive_seed, seed_everything
from lens.training.profiling import profiled
from lens.training.trainer import Trainer
from lens.training.update import Loss

log = logging.getLogger(__name__)

disable_progress_bars()  # of datasets, which would run through the bars that tell something


def train(config: DictConfig, folder: Path, *, show_progress: bool) -> dict[str, float]:
    """Train as the config says, or go on, or say that it is done; returns the last evaluation's metrics.

    Raises:
        ConfigError: a value that cannot work.
        StopRequested: Ctrl-C or SIGTERM; the run folder is whole, and the same command goes on.
    """
    check_values(config)
    check_training(config, world_size())
    check_fetched(config)
    objective = instantiate(config.objective)
    check_objective(objective)
    wandb_mode = resolve_wandb_mode(config.tracking.wandb.mode)
    plain = OmegaConf.to_container(config, resolve=True)
    if summary := finished_summary(folder, plain):
        store_config(config, folder)
        log.info("Finished already at step %d: %s", summary["step"], folder)
        return summary["metrics"]
    checkpoint, state = find_state(folder, plain) or (None, None)
    barrier()  # no process still reads what the first may change from here on
    store_config(config, folder)

    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    raw_sets = load_evaluation_sets(config.evaluation.sets)
    problems, contamination = instantiate(config.dataset)(raw_sets)
    name = model_path(config)
    lora = config.model.lora
    model, tokenizer = load_model(str(name if lora else checkpoint or name), **loading(config))
    if lora:
        check_adapters(model, lora)
    wanted = {key: config.trainer[key] for key in ("gradient_checkpointing", "torch_compile")}
    check_layers(model, **wanted)
    reference = load_model(name, **loading(config))[0] if config.trainer.beta > 0 else None

    evaluator = make_evaluator(config, raw_sets, tokenizer)
    problems, prompts, too_long = encode_problems(problems, tokenizer, PromptFormat(**config.model.prompt))
    if len(problems) < config.trainer.num_prompts_per_rollout:
        valid = f"at most {len(problems)}, the training problems there are"
        raise ConfigError("trainer.num_prompts_per_rollout", config.trainer.num_prompts_per_rollout, valid)
    longest = max(
        longest_sequence(model, prompts, config.trainer.max_completion_length), evaluator_needs(model, evaluator)
    )
    announce_plan(config, len(problems), too_long, evaluator)

    with ExitStack() as stack:
        grader = stack.enter_context(instantiate(config.grader))
        failing = failing_golds(config, grader, {"dataset": problems} | problems_of(evaluator))
        stop = StopSignals()
        sampler = stack.enter_context(make_sampler(config, model, tokenizer, longest, stop.apart))
        if lora:  # not before: a sampler's copy of the model is one without adapters
            add_adapters(model, lora, derive_seed(config.seed, "lora"))
            if checkpoint:
                load_adapters(checkpoint / checkpoints.ADAPTER_FOLDER, model)
        for sharded in filter(None, (model, reference)):
            shard(sharded)
        seed_everything(config.seed)
        stack.enter_context(stop.listening())
        choices = HydraConfig.get().runtime.choices
        own = checkpoint is not None and checkpoint.is_relative_to(folder)
        wandb_settings = {
            "mode": wandb_mode,
            "project": config.tracking.wandb.project,
            "group": config.tracking.wandb.group,
            "name": f"{choices.objective}-seed{config.seed}",
            "tags": [str(choices[group]) for group in ("experiment", "objective", "model", "dataset", "sampler")],
        }
        tracker = SilentTracker()
        if is_first():
            if state and not own:
                copy_history(checkpoint.parent.parent, folder, state["step"])
            if state:
                kept = {"keep": config.trainer.keep_checkpoints, "best": state["best"].get("step")}
                checkpoints.prune(folder / "checkpoints", state["step"], **kept)
            run_id, lines = state["wandb_run_id"] if own else None, state["lines"] if state else 0
            tracker = Tracker(folder, plain, wandb_settings, run_id=run_id, lines=lines)
            write_json(folder / PROVENANCE, {**provenance(), "config": plain})
            write_json(folder / "contamination.json", contamination)
            write_json(folder / "failing_golds.json", failing)
        trainer = Trainer(
            settings=config.trainer,
            loss=Loss(**{f.name: config.trainer[f.name] for f in fields(Loss)}),
            objective=objective,
            model=model,
            reference=reference,
            tokenizer=tokenizer,
            problems=problems,
            prompts=prompts,
            sampler=sampler,
            grader=SharedGrader(grader, stop.apart),
            evaluator=evaluator,
            evaluate_every=config.evaluation.every,
            tracker=tracker,
            seed=config.seed,
            folder=folder,
            stop=stop,
            show_progress=show_progress,
            identity={"config": plain, "wandb_run_id": tracker.run_id},
        )
        summary = None
        try:
            if state:
                trainer.restore(checkpoint, state)
                log.info("Going on from step %d: %s", state["step"], checkpoint)
            (folder / FAILURE).unlink(missing_ok=True)
            with profiled(folder, enabled=config.profile):
                metrics = trainer.run()
            summary = {
                "step": trainer.position.step,
                "metrics": metrics,
                "best": trainer.position.best,
                "contamination": {name: without_ids(found) for name, found in contamination.items()},
                "failing_golds": count_all(failing),
                "prompts_too_long": {"dataset": too_long} | too_long_of(evaluator),
            }
        except RunFailed as failure:
            with suppress(OSError):  # the disk may be full
                (folder / FAILURE).write_text(f"{failure}\n")
            raise
        finally:
            tracker.finish(summary)
    accuracies = ", ".join(f"{name} {100 * value:.1f} %" for name, value in metrics.items() if is_headline(name))
    log.info("Finished at step %d (%s): %s", trainer.position.step, accuracies, folder)
    return metrics


def store_config(config: DictConfig, folder: Path) -> None:
    """Write .hydra/ as Hydra does, but once it is known that the config may have the folder; each file whole or not."""
    if not is_first():
        return
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    hydra = HydraConfig.get()
    parts = {"config": config, "hydra": OmegaConf.create({"hydra": hydra}), "overrides": hydra.overrides.task}
    for name, part in parts.items():
        with replacing(folder / ".hydra" / f"{name}.yaml") as unfinished:
            OmegaConf.save(part, unfinished)


def is_headline(name: str) -> bool:
    """Whether a metric is the pass@1 of a whole evaluation set."""
    return name.startswith("eval/") and name.endswith("/pass@1") and name.count("/") == 2


def announce_plan(config: DictConfig, num_problems: int, too_long: int, evaluator: Evaluator) -> None:
    """Log what the run will do: the batch plan."""
    t = config.trainer
    rounds_per_epoch = num_problems // t.num_prompts_per_rollout
    updates = t.num_prompts_per_rollout // t.num_prompts_per_step
    log.info(
        "Plan: %d problems (%d too long); a round is %d questions x %d answers of at most %d tokens = %d answers; "
        "%d update(s) a round of %d answers each; %d steps an epoch, %d steps = %.2f epochs; "
        "evaluation every %d steps on %d problems x %d samples",
        num_problems,
        too_long,
        t.num_prompts_per_rollout,
        t.num_generations,
        t.max_completion_length,
        t.num_prompts_per_rollout * t.num_generations,
        updates,
        t.num_prompts_per_step * t.num_generations,
        rounds_per_epoch * updates,
        t.max_steps,
        t.max_steps / (rounds_per_epoch * updates),
        config.evaluation.every,
        sum(len(s.prompts) for s in evaluator.sets),
        evaluator.num_samples,
    )
