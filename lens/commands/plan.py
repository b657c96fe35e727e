"""Prints the plan of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from lens.commands.measured import Measured
from lens.config.checks import check_values
from lens.planning.communication import GB, Communication, advise_on_replicas
from lens.planning.forecast import GIB, Plan, make_plan
from lens.planning.rules import RULES
from lens.planning.simulation import Costs, Row, simulate
from lens.terminal import show_table


def show_plan(config: DictConfig) -> None:
    """Print the plan of a composed config: batches, memory of a GPU, cost, and the assumptions behind them."""
    check_values(config, RULES)
    measured = None if config.measured is None else Measured.read(Path(config.measured))
    made = make_plan(config if measured is None else measured.put_into(config))
    config = made.config
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
    if config.simulate is not None:
        show_simulation(made, measured)
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


def show_simulation(made: Plan, measured: Measured | None) -> None:
    """Print a step on other numbers of GPUs, and what the simulation takes for granted."""
    config, costs = made.config, Costs.assumed(made) if measured is None else measured.costs(made)
    rows = simulate(made, config.simulate, costs, None if measured is None else measured.lengths)
    show_table("Seconds of a step", tabulate_steps(rows))
    few = config.trainer.num_prompts_per_step
    if refused := [str(number) for number in config.simulate if few % number]:
        valid = f"{few} questions an update do not divide by {', '.join(refused)}, so scripts/train.py refuses them"
        print(f"strong: {valid}; simulated as if it did not.")
    source = f"{config.length_spread} of the mean as standard deviation of lengths; seconds as assumed"
    if measured is not None:
        times = f"{costs.sampling:.3g} times the assumed seconds of sampling and {costs.update:.3g} of the update"
        source = f"lengths and seconds of {measured.folder}, by {measured.processes} process(es): {times}"
    print(
        f"Simulated: {source}; {1000 * costs.grading:.2g} ms of a core to grade an answer; "
        f"{1000 * costs.handling:.2g} ms in every process for each answer of all; "
        f"checkpoints at {config.disk_gbs} GB/s; no exchange beside computation; links without latency; "
        f"evaluations left out; asynchronous samplers at most {config.max_staleness} round(s) ahead, "
        f"at the best of a few splits of the GPUs."
    )


def tabulate_steps(rows: list[Row]) -> pd.DataFrame:
    """Return the table of simulated steps, as text."""
    shown = []
    for row in rows:
        config = row.plan.config
        phases = {name.replace("_", " "): f"{seconds:.2f}" for name, seconds in asdict(row.step).items()}
        sizes = {"scaling": row.scaling, "GPUs": config.num_gpus, "questions": config.trainer.num_prompts_per_step}
        apart = "no room" if row.asynchronous is None else f"{row.asynchronous:.2f}"
        found = {"step": f"{row.step.total:.2f}", "efficiency": f"{row.efficiency:.0%}", "most": row.step.dominant}
        shown.append(sizes | phases | found | {"asynchronous": apart})
    return pd.DataFrame(shown).astype(str)
