"""Computes what another objective would have made of stored rollouts. No model is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lens.errors import ConfigError
from lens.objectives import calibrated_rewards
from lens.objectives.groups import group_kinds
from lens.objectives.inputs import call_by_name, find_inputs

GRADED = ["problem_id", "level", "sample", "verdict", "valid", "confidence", "length"]  # what `weigh_again` needs
STORED = [*GRADED, "calibrated_reward", "advantage"]
PER_TOKEN = ["logprobs", "entropies", "reference_logprobs"]  # columns with a value for each token
ALSO_USED = ["reward", "finish_reason", *PER_TOKEN]  # columns that some objectives ask for


def weigh_again(
    answers: pd.DataFrame,
    objective: Callable[..., Tensor],
    *,
    step: int = 0,
    max_completion_length: int | None = None,
) -> pd.DataFrame:
    """Return rewards and advantages of stored answers under an objective, in their order.

    The recalibrated reward uses the objective's own ``scale_mixed``, ``scale_negative``, ``difficulty`` and ``rho`` if
    it has them, and the paper's values otherwise. The stored calibrated reward always uses the paper's. An objective
    that draws random numbers draws them from seed 0.

    Args:
        answers: whole groups, one after the other, with the columns GRADED.
        objective: see lens/objectives/inputs.py.
        step, max_completion_length: for objectives that ask for them.

    Returns:
        A frame with the columns recalibrated_reward and advantage, float32; the mean over the tokens of an answer.

    Raises:
        ConfigError: the run did not store something that the objective asks for.
    """
    own = getattr(objective, "keywords", {})
    options = {name: own[name] for name in ("difficulty", "rho", "scale_mixed", "scale_negative") if name in own}
    known = read_inputs(answers, objective) | {"step": step, "max_completion_length": max_completion_length}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        advantages = call_by_name(objective, known)
    if advantages.dim() == 3:
        mask = known["mask"]
        advantages = (advantages * mask).sum(dim=2) / mask.sum(dim=2).clamp(min=1)
    basis = known["correct"], known["confidence"]
    rewards = calibrated_rewards(*basis, lengths=known["lengths"], valid=known["valid"], **options)
    weighed = {"recalibrated_reward": rewards.flatten().numpy(), "advantage": advantages.float().flatten().numpy()}
    return pd.DataFrame(weighed, index=answers.index)


def read_inputs(answers: pd.DataFrame, objective: Callable[..., Tensor]) -> dict[str, Any]:
    """Return what the objective asks for (lens/objectives/inputs.py), as far as it was stored.

    Raises:
        ConfigError: the run did not store something that the objective asks for.
    """
    size, asked = find_group_size(answers), find_inputs(objective)
    columns = {
        "correct": answers["verdict"] == "correct",
        "valid": answers["valid"],
        "confidence": answers["confidence"],
        "lengths": answers["length"],
    }
    known = {name: torch.tensor(values.to_numpy()).view(-1, size) for name, values in columns.items()}  # [Q, G] each
    known["rewards"] = known["correct"].float()
    if "reward" in answers:
        known["rewards"] = torch.tensor(answers["reward"].to_numpy(), dtype=torch.float32).view(-1, size)
    known["problem_ids"] = list(group_ids(answers, size)[:, 0])
    known["mask"] = torch.arange(int(known["lengths"].max())) < known["lengths"][..., None]  # [Q, G, T]
    if "finish_reason" in answers:
        known["truncated"] = torch.tensor((answers["finish_reason"] == "length").to_numpy()).view(-1, size)
    for name in asked & set(PER_TOKEN):
        if name not in answers:
            raise ConfigError("run", "rollouts", f"must hold the column {name!r}, which the objective asks for")
        values = known["mask"].float()
        values[known["mask"]] = torch.tensor(np.concatenate(list(answers[name])), dtype=torch.float32)
        known[name] = values
    return known


def find_group_size(answers: pd.DataFrame) -> int:
    """Return G, the number of answers in each stored group.

    Raises:
        ConfigError: the answers are not whole groups of one size, one after the other.
    """
    size = int(answers["sample"].max()) + 1
    whole = len(answers) % size == 0 and (answers["sample"].to_numpy() == np.arange(len(answers)) % size).all()
    if not (whole and (answers["problem_id"].to_numpy().reshape(-1, size)[:, :1] == group_ids(answers, size)).all()):
        raise ConfigError("run", "rollouts", "must be stored rollouts of whole groups, one after the other")
    return size


def group_ids(answers: pd.DataFrame, size: int) -> np.ndarray:
    """Return the problem ids as [Q, G]."""
    return answers["problem_id"].to_numpy().reshape(-1, size)


def name_group_kinds(answers: pd.DataFrame) -> list[str]:
    """Return the kind of each group: negative, mixed or positive; unjudged if no answer in it may teach."""
    size = find_group_size(answers)
    correct, valid = (
        torch.tensor(values.to_numpy()).view(-1, size) for values in (answers["verdict"] == "correct", answers["valid"])
    )
    kinds = group_kinds(correct, valid)
    names = np.full(len(correct), "unjudged", dtype=object)
    for name, members in kinds._asdict().items():
        names[members.flatten().numpy()] = name
    return list(names)


def compare_advantages(stored: pd.DataFrame, advantages: pd.Series, weights: np.ndarray) -> dict[str, float | str]:
    """Compare the advantages of another objective with the stored ones.

    Args:
        stored: one file of rollouts, with the columns STORED.
        advantages: the other objective's, of the same answers.
        weights: the weight of each answer in the loss.

    Returns:
        ``groups``: their number. ``negative groups``: percent of all groups. ``share of |A|``: percent of the weighted
        |advantage| that lies in negative groups, as trained -> as replayed. ``trained``: percent of answers whose
        advantage is not 0, in the same form. ``sign changed``: percent of answers that one objective raises and the
        other lowers.
    """
    negative = np.repeat(np.array(name_group_kinds(stored)) == "negative", find_group_size(stored))
    trained, advantages = stored["advantage"].fillna(0), advantages.fillna(0)  # not in the batch: no advantage

    def share(a: pd.Series) -> float:
        pull = a.abs().to_numpy(dtype=float) * weights
        return 100 * pull[negative].sum() / pull.sum() if pull.sum() > 0 else 0.0

    def both(measure: Callable[[pd.Series], float]) -> str:
        return f"{measure(trained):.3g} -> {measure(advantages):.3g}"

    return {
        "groups": len(stored) // find_group_size(stored),
        "negative groups": 100 * float(negative.mean()),
        "share of |A|": both(share),
        "trained": both(lambda a: 100 * float((a != 0).mean())),
        "sign changed": 100 * float((trained * advantages < 0).mean()),
    }
