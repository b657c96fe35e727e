"""Computes what another objective would have made of stored rollouts. No model is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lens.errors import ConfigError
from lens.objectives import calibrated_rewards
from lens.objectives.groups import group_kinds

GRADED = ["problem_id", "level", "sample", "verdict", "valid", "confidence", "length"]  # what `weigh_again` needs
STORED = [*GRADED, "calibrated_reward", "advantage"]


def weigh_again(answers: pd.DataFrame, objective: Callable[..., Tensor]) -> pd.DataFrame:
    """Return rewards and advantages of stored answers under an objective, in their order.

    The recalibrated reward uses the objective's own ``scale_mixed``, ``scale_negative``, ``difficulty`` and ``rho`` if
    it has them, and the paper's values otherwise. The stored calibrated reward always uses the paper's. An objective
    that draws random numbers draws them from seed 0.

    Args:
        answers: whole groups, one after the other, with the columns GRADED.
        objective: ``objective(correct, confidence, lengths=, valid=) -> advantages``, all [Q, G].

    Returns:
        A frame with the columns recalibrated_reward and advantage, float32.
    """
    size = find_group_size(answers)
    correct, valid, confidence, lengths = (
        torch.tensor(values.to_numpy()).view(-1, size)  # [Q, G]
        for values in (answers["verdict"] == "correct", answers["valid"], answers["confidence"], answers["length"])
    )
    own = getattr(objective, "keywords", {})
    options = {name: own[name] for name in ("difficulty", "rho", "scale_mixed", "scale_negative") if name in own}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        advantages = objective(correct, confidence, lengths=lengths, valid=valid)
    rewards = calibrated_rewards(correct, confidence, lengths=lengths, valid=valid, **options)
    weighed = {"recalibrated_reward": rewards.flatten().numpy(), "advantage": advantages.float().flatten().numpy()}
    return pd.DataFrame(weighed, index=answers.index)


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
    trained = stored["advantage"]

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
