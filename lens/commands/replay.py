"""Computes the advantages that another objective gives a run's stored rollouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from lens.config.callables import check_objective
from lens.config.checks import check_writable
from lens.files import write_parquet
from lens.losses.aggregation import token_weights
from lens.runs.answers import find_answers, read_answers
from lens.runs.run import read_config
from lens.terminal import show_table
from lens.training.stored_experience import ALSO_USED, STORED, compare_advantages, find_group_size, weigh_again


def replay(run: Path, objective: Callable[..., Tensor], *, name: str, step: int | None, target: Path) -> pd.DataFrame:
    """Weigh a run's stored rollouts under an objective, print what changes, and write step_*.parquet.

    Each file has a row per answer. It holds the stored columns, with the run's own advantage as ``advantage_trained``,
    and the objective's ``recalibrated_reward`` and ``advantage`` (see `weigh_again`).

    Args:
        run: a run folder.
        objective: as in a training run.
        name: the name of the objective, for the table's title.
        step: the step whose rollouts are weighed; None takes all that are stored.
        target: the folder to write to.

    Returns:
        The printed table: a row per step (see `compare_advantages`).

    Raises:
        ConfigError: the objective cannot work, there are no such rollouts, or the target cannot be written to.
    """
    mode, longest = "seq-mean-token-mean", None
    if (run / ".hydra" / "config.yaml").exists():
        trained = read_config(run, "run")
        mode, longest = trained.loss.loss_agg_mode, trained.trainer.rollouts.max_completion_length
    files = find_answers(run, "rollouts", step)
    first = read_answers(next(iter(files.values())), ["problem_id", "sample"])
    check_objective(objective, find_group_size(first))
    check_writable("target", target)
    rows = []
    for at, file in files.items():
        stored = read_answers(file, STORED, ALSO_USED)
        again = weigh_again(stored, objective, step=(at or 1) - 1, max_completion_length=longest)
        before = stored[STORED].rename(columns={"advantage": "advantage_trained"})
        write_parquet(target / file.name, before.join(again))
        weights = token_weights(
            torch.tensor(stored["length"] * stored["valid"]), mode, max_completion_length=longest or 1
        )
        rows.append(
            {"step": at} | compare_advantages(stored, again["advantage"], weights.numpy() * stored["length"].to_numpy())
        )
    table = pd.DataFrame(rows)
    printed = table.map(lambda value: f"{value:.3g}" if isinstance(value, float) else value)
    show_table(f"{run}: as trained -> under {name}, in %", printed)
    print(f"answers: {target}")
    return table
