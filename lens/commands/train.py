"""Trains one model: makes the parts that the config names, connects them, and runs the training loop."""

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lens import __version__
from lens.commands.assembly import (
    check_inputs,
    find_failing_golds,
    list_problems,
    loading_options,
    longest_evaluation_sequence,
    longest_sequence,
    make_evaluator,
    make_sampler,
    model_path,
    use_threads,
)
from lens.commands.host_needs import check_host_needs
from lens.commands.training_set import TrainingSet, announce_plan, hash_all_prompts
from lens.config.callables import check_loss, check_objective, check_shaping
from lens.config.checks import check_shard_degree, check_training, check_values
from lens.distributed.collectives import barrier, is_first, world_size
from lens.distributed.stop_signals import StopSignals
from lens.errors import RunFailed
from lens.files import replacing, write_json
from lens.grading.parallel_grader import ParallelGrader
from lens.models.allocator import keep_freed_memory
from lens.models.layers import check_layers
from lens.models.loading import DTYPES, check_attention, load_model
from lens.models.lora import add_adapters, check_adapters, load_adapters
from lens.models.precision import settle_precision
from lens.models.probe import check_forward_pass, make_probe
from lens.models.sharding import shard_model
from lens.objectives.inputs import find_inputs
from lens.objectives.subset import sample_negatives
from lens.problems import load_evaluation_sets
from lens.runs.checkpoints import ADAPTER_FOLDER, CheckpointFolder, prune_checkpoints, restore_replaced_name
from lens.runs.provenance import describe_provenance
from lens.runs.resuming import check_prompts, copy_history, find_state, find_stored_config, read_finished_summary
from lens.runs.run import FAILURE, PROVENANCE
from lens.runs.tracker import SilentTracker, Tracker
from lens.runs.wandb_account import resolve_wandb_mode
from lens.seeding import derive_seed, seed_everything
from lens.training.collecting import Collector
from lens.training.policy import Policy
from lens.training.profiling import profile_run
from lens.training.trainer import Trainer
from lens.training.update import Loss
from lens.training.weight_sync import WeightSync

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Says where a run starts: at the beginning, or at a checkpoint.

    Attributes:
        folder: the run folder.
        config: the composed config as plain values.
        checkpoint, state: the folder of the checkpoint to resume from, and its training state; None to begin anew.
    """

    folder: Path
    config: dict[str, Any]
    checkpoint: Path | None = None
    state: dict[str, Any] | None = None

    @property
    def resumes_itself(self) -> bool:
        """Return whether the checkpoint is the run's own, not another run's."""
        return self.checkpoint is not None and self.checkpoint.is_relative_to(self.folder)


def train(config: DictConfig, folder: Path, *, show_progress: bool) -> dict[str, float]:
    """Train as the config says, resume the run, or do nothing if it is finished; return the last evaluation's metrics.

    Raises:
        ConfigError: a value that cannot work.
        StopRequested: Ctrl-C or SIGTERM arrived. The run folder is complete, and the printed command resumes the run.
        RunFailed: the run cannot continue; failure.txt in its folder says why.
    """
    check_values(config)
    check_training(config, world_size())
    check_shard_degree(config, world_size())
    objective, stages = instantiate(config.objective), make_stages(config)
    check_loss(Loss.build(config).surrogate, check_objective(objective, config.trainer.rollouts.num_generations))
    wandb_mode = resolve_wandb_mode(config.tracking.wandb.mode)
    check_inputs(config)
    check_attention(config.model.attention)
    settle_precision(config, find_stored_config(folder, config.resume))
    plain = OmegaConf.to_container(config, resolve=True)
    if summary := read_finished_summary(folder, plain):
        store_config(config, folder)
        log.info("Already finished at step %d: %s", summary["step"], folder)
        return summary["metrics"]
    start = find_start(folder, plain)
    use_threads(config.trainer.memory.num_threads)
    raw_sets = load_evaluation_sets(config.evaluation.sets)
    problems, contamination = instantiate(config.dataset)(raw_sets)
    model, tokenizer, reference = load_models(config, start, "reference_logprobs" in find_inputs(objective))
    evaluator = make_evaluator(config, raw_sets, tokenizer)
    training_set = TrainingSet.encode(config, problems, tokenizer, contamination)
    longest = max(
        longest_sequence(model, training_set.prompts, config.trainer.rollouts.max_completion_length),
        longest_evaluation_sequence(model, evaluator),
    )
    prompts = check_prompts(hash_all_prompts(training_set, evaluator), start.state, start.checkpoint)
    store_config(config, folder)
    announce_plan(config, training_set, evaluator)

    with ExitStack() as stack:
        grader = stack.enter_context(instantiate(config.grader))
        failing = find_failing_golds(config, grader, {"dataset": training_set.problems} | list_problems(evaluator))
        stop = StopSignals()
        sampler = stack.enter_context(make_sampler(config.sampler, model, tokenizer, longest, stop.interruptible))
        prepare_weights(config, start, model, reference)
        policy = Policy.build(config, model, tokenizer, reference)
        check_forward_pass(model, policy.forward_pass, make_probe(training_set.prompts))
        seed_everything(config.seed)
        stack.enter_context(stop.listening())
        tracker = make_tracker(config, start, wandb_mode)
        if is_first():
            write_json(folder / "contamination.json", contamination)
            write_json(folder / "failing_golds.json", failing)
        weight_sync = WeightSync(sampler, model, training_set.prompts, policy.forward_pass)
        graders = ParallelGrader(grader, stop.interruptible)
        asked, parts = (training_set.problems, training_set.prompts), (weight_sync, graders, objective, policy)
        collector = Collector(config.trainer.rollouts, *asked, *parts, config.seed, **stages)
        identity = {"config": plain, "prompts": prompts, "wandb_run_id": tracker.run_id}
        checkpoints = CheckpointFolder(folder / "checkpoints", identity)
        parts = config.trainer, policy, collector, evaluator, tracker, checkpoints, stop, show_progress
        counts = training_set.counts(evaluator, failing)
        return run_to_the_end(Trainer(*parts), start, counts, profile=config.profile)


def find_start(folder: Path, config: dict[str, Any]) -> Start:
    """Find where a run starts; all processes find the same.

    Raises:
        ConfigError: see `find_state`.
    """
    if is_first():
        restore_replaced_name(folder / "checkpoints")
    barrier()  # all processes find the same checkpoints
    start = Start(folder, config, *(find_state(folder, config) or ()))
    barrier()  # from here on the first process may change files that the others have read
    return start


def make_stages(config: DictConfig) -> dict[str, Any]:
    """Make what a round goes through before and after the objective, as keywords of a `Collector`.

    Raises:
        ConfigError: one of them cannot work.
    """
    shaping, group_filter = (instantiate(config.get(name)) for name in ("reward_shaping", "filter_groups"))
    if shaping is not None:
        check_shaping(shaping, config.trainer.rollouts.max_completion_length)
    keep, by = config.trainer.negative_answers, config.trainer.negative_answers_by
    thin_out = None if keep is None else partial(sample_negatives, keep=keep, by=by)
    return {"reward_shaping": shaping, "group_filter": group_filter, "thin_out": thin_out}


def load_models(
    config: DictConfig, start: Start, needs_reference: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, PreTrainedModel | None]:
    """Load the model to train, its tokenizer, and the reference model if loss.beta > 0 or it is needed (else None).

    The weights are the checkpoint's if there is one. With adapters they are the base model's, and `prepare_weights`
    adds the adapters later.

    Raises:
        ConfigError: there is no such model, its layers cannot do what the config asks, or the host has too little
            memory.
    """
    name, lora = model_path(config), config.model.lora
    source = name if lora or start.checkpoint is None else start.checkpoint
    model, tokenizer = load_model(str(source), **loading_options(config))
    if lora:
        check_adapters(model, lora)
    check_layers(model, config.trainer.memory)
    needs_reference |= config.loss.beta > 0
    reference = load_model(name, **loading_options(config))[0] if needs_reference else None
    check_host_needs(config, model, reference)
    return model, tokenizer, reference


def prepare_weights(
    config: DictConfig, start: Start, model: PreTrainedModel, reference: PreTrainedModel | None
) -> None:
    """Add adapters if the config asks for them, and shard the weights over the processes.

    Call it after making the sampler, whose copy of the model has no adapters.
    """
    if config.model.lora:
        add_adapters(model, config.model.lora, derive_seed(config.seed, "lora"))
        if start.checkpoint:
            load_adapters(start.checkpoint / ADAPTER_FOLDER, model)
    memory = config.trainer.memory
    # Compiled layers keep the weights of norms with the others, whose type they would get.
    gathered = None if memory.torch_compile or memory.autocast is None else DTYPES[memory.autocast]
    for sharded in filter(None, (model, reference)):
        shard_model(sharded, gathered, memory.data_parallel_shard_degree)


def make_tracker(config: DictConfig, start: Start, wandb_mode: str) -> Tracker | SilentTracker:
    """Prepare the run folder, and make the tracker that writes the run's metrics; only the first process writes.

    When the run resumes, the folder gets the history up to the checkpoint, and later checkpoints stay as they are.
    """
    if not is_first():
        return SilentTracker()
    folder, state = start.folder, start.state
    if state and not start.resumes_itself:
        copy_history(start.checkpoint.parent.parent, folder, state["step"])
    if state:
        kept = {"keep": config.trainer.checkpoints.keep_checkpoints, "best": state["best"].get("step")}
        prune_checkpoints(folder / "checkpoints", state["step"], **kept)
    choices = HydraConfig.get().runtime.choices
    settings = {
        "mode": wandb_mode,
        "project": config.tracking.wandb.project,
        "group": config.tracking.wandb.group,
        "name": f"{choices.objective}-seed{config.seed}",
        "tags": [str(choices[group]) for group in ("experiment", "objective", "model", "dataset", "sampler")],
    }
    run_id = state["wandb_run_id"] if start.resumes_itself else None
    tracker = Tracker(folder, start.config, settings, run_id=run_id, lines=state["lines"] if state else 0)
    write_json(folder / PROVENANCE, {**describe_provenance(), "config": start.config})
    return tracker


def run_to_the_end(trainer: Trainer, start: Start, counts: dict[str, Any], *, profile: bool) -> dict[str, float]:
    """Run the training loop from where the run starts, write the summary, and return the last evaluation's metrics.

    Args:
        trainer: the trainer of the run.
        start: where the run starts.
        counts: counts of problems for the summary.
        profile: whether to run under torch's profiler.

    Raises:
        RunFailed, StopRequested: from `Trainer.run`; the W&B run is then marked as not finished.
    """
    folder, summary = start.folder, None
    try:
        if start.state:
            trainer.restore(start.checkpoint, start.state)
            log.info("Resuming from step %d: %s", start.state["step"], start.checkpoint)
        (folder / FAILURE).unlink(missing_ok=True)
        keep_freed_memory()
        with profile_run(folder, enabled=profile):
            metrics = trainer.run()
        at = trainer.state
        summary = {"step": at.step, "metrics": metrics, "best": at.best, **counts, "lens_version": __version__}
    except RunFailed as failure:
        with suppress(OSError):  # the disk may be full
            (folder / FAILURE).write_text(f"{failure}\n")
        raise
    finally:
        trainer.tracker.finish(summary)
    accuracies = ", ".join(f"{name} {100 * value:.1f} %" for name, value in metrics.items() if is_headline(name))
    log.info("Finished at step %d (%s): %s", at.step, accuracies, folder)
    return metrics


def store_config(config: DictConfig, folder: Path) -> None:
    """Write .hydra/ as Hydra does, each file complete or not at all.

    Hydra would write it at once; this runs only after the checks that the config may use the folder.
    """
    if not is_first():
        return
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    hydra = HydraConfig.get()
    parts = {"config": config, "hydra": OmegaConf.create({"hydra": hydra}), "overrides": hydra.overrides.task}
    for name, part in parts.items():
        with replacing(folder / ".hydra" / f"{name}.yaml") as unfinished:
            OmegaConf.save(part, unfinished)


def is_headline(name: str) -> bool:
    """Return whether a metric is the pass@1 of a whole evaluation set."""
    return name.startswith("eval/") and name.endswith("/pass@1") and name.count("/") == 2
