"""Prints the plan of a run."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from omegaconf import DictConfig

from lens.planning.communication import GB, Communication, advise_on_replicas
from lens.planning.forecast import GIB, Plan, make_plan
from lens.terminal import show_table


def show_plan(config: DictConfig) -> None:
    """Print the plan of a composed config: batches, memory of a GPU, cost, and the assumptions behind them."""
    made = make_plan(config)
    t, model = config.trainer, made.model
    adapters = f" and {model.adapters:,} of adapters" if model.adapters else ""
    name = config.model.name_or_path or "the tiny model"
    print(f"{name}: {model.parameters:,} parameters{adapters} on {config.num_gpus} GPU(s)")
    batches = [
        ("training problems, at most", f"{made.problems:,}"),
        (
            "questions x answers a round",
            f"{t.rollouts.num_prompts_per_rollout} x {t.rollouts.num_generations} = {made.answers_a_round:,}",
        ),
        ("questions x answers an update", f"{t.num_prompts_per_step} x {t.rollouts.num_generations}"),
        ("updates a round", made.updates_a_round),
        ("updates, rounds", f"{t.max_steps:,}, {made.rounds:,}"),
        ("steps an epoch", f"{made.steps_an_epoch:,} ({t.max_steps / max(made.steps_an_epoch, 1):.2f} epochs in all)"),
        ("longest sequence in tokens", f"{config.model.prompt.max_length:,} + {t.rollouts.max_completion_length:,}"),
        ("evaluations", f"{made.evaluations} x {made.evaluated:,} problems x {config.evaluation.num_samples} answers"),
    ]
    show_table("Batches", pd.DataFrame([(name, str(value)) for name, value in batches], columns=["what", "number"]))

    phases: dict[str, Callable[[], dict[str, float]]] = {"sampling": made.sampling, "update": made.update}
    rows = []
    for name, size in made.states().items():
        rows.append((name, size, size))
    for phase, needs in phases.items():
        rows += [(name, *((size, 0) if phase == "sampling" else (0, size))) for name, size in needs().items()]
    fit = int(made.room_for_cache // made.cache_a_sequence)
    at_once = min(fit, made.sequences_wanted)
    name = f"key-value cache of {at_once} sequences at their longest ({made.cache_a_sequence / GIB:.2f} GiB each)"
    rows.append((name, at_once * made.cache_a_sequence, 0))
    rows.append(("in all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    shown = [(name, f"{sampling / GIB:.2f}", f"{update / GIB:.2f}") for name, sampling, update in rows]
    title = f"Memory of a GPU in GiB ({made.usable / GIB:.1f} of {config.gpu_memory_gib} can be used)"
    show_table(title, pd.DataFrame(shown, columns=["what", "while sampling", "in the update"]))

    cost = made.hours()
    total = sum(hours for _, hours in cost.values())
    shown = [(name, f"{tokens / 1e6:,.1f}", f"{hours:,.1f}") for name, (tokens, hours) in cost.items()]
    shown.append(("in all", "", f"{total:,.1f}"))
    show_table("Cost", pd.DataFrame(shown, columns=["part", "million tokens", "GPU-hours"]))
    print(f"{total / config.num_gpus:,.1f} hours on {config.num_gpus} GPU(s), if none waits for another.")
    if config.num_gpus > 1:
        show_communication(made)
    print(
        f"Assumed: {config.mean_prompt_length} + {made.tokens_an_answer} tokens a sequence on average; "
        f"{config.gpu_tflops} TFLOP/s at {config.training_utilization:.0%} in training; "
        f"{config.gpu_bandwidth_gbs} GB/s at {config.generation_utilization:.0%} in decoding, prompts free; "
        f"{config.trained_share:.0%} of answers with an advantage; weights, gradients and optimizer state in equal "
        f"parts on the GPUs that share a copy; grading beside the GPUs; hours without communication."
    )


def show_communication(made: Plan) -> None:
    """Print what a GPU exchanges in a step, how long its links take, and whether replicas would pay."""
    config = made.config
    counted = Communication(made, made.shards)
    rows = [(each.what, each.bytes / GB, counted.seconds(each)) for each in counted.exchanges()]
    rows.append(("in all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    shown = [(name, f"{size:,.2f}", f"{seconds:,.3f}") for name, size, seconds in rows]
    copies = f"{counted.replicas} cop{'y' if counted.replicas == 1 else 'ies'} of the model on {made.shards} GPUs each"
    links = f"{config.node_link_gbs} GB/s within a node of {config.gpus_per_node}, {config.link_gbs} between nodes"
    title = f"What a GPU receives in a step: {copies}, {counted.microbatches} micro-batch(es); {links}"
    show_table(title, pd.DataFrame(shown, columns=["what", "GB", "seconds, if nothing overlaps"]))
    print(advise_on_replicas(made))
