"""The objectives for what trainers have: one row an answer, groups in any order and of any size."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lens.integrations.names import Objective, make_objective, remembers
from lens.objectives.inputs import InputError, call_by_name, find_inputs, is_needed
from lens.objectives.tokens import token_mean

CORRECT_ABOVE = 0.5  # an answer with a larger reward is correct, unless the verdicts are given
PER_TOKEN = ("mask", "logprobs", "entropies", "reference_logprobs")
NO_KEYS: Mapping[str, str] = {}
# What an objective names, and the argument of `group_advantages` that it comes from.
SOURCES = {"confidence": "mean_logprobs, or logprobs with mask", "lengths": "lengths or mask"}


def group_advantages(
    rewards: Tensor,
    group_ids: Sequence[Hashable] | Tensor,
    mean_logprobs: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    objective: str | Objective = "lens",
    *,
    correct: Tensor | None = None,
    valid: Tensor | None = None,
    logprobs: Tensor | None = None,
    entropies: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    truncated: Tensor | None = None,
    problem_ids: Sequence[str] | None = None,
    step: int | None = None,
    max_completion_length: int | None = None,
    left_out: float = 0.0,
    keys: Mapping[str, str] = NO_KEYS,
    **options: Any,
) -> Tensor:
    """Return the advantage of each of B answers, which may be in any order and in groups of unequal sizes.

    Args:
        rewards: [B], NaN for an answer that has none. 1 and 0, or 1 and -1, are verdicts. Other numbers bring a
            warning: an answer is then correct if its reward is above 0.5, unless ``correct`` says otherwise.
        group_ids: B numbers or strings; answers with the same one are answers to the same question.
        mean_logprobs: [B], the mean log-probability (nats) of an answer's tokens under the policy that sampled it.
        lengths: [B], numbers of tokens. None: counted in the mask.
        mask: bool [B, T], the tokens of each answer.
        objective: a name, a function, or an object that remembers earlier rounds; see `make_objective`.
        correct: bool [B], the verdicts, where the rewards hold more than these.
        valid: bool [B], which answers count. Those without a reward, and those without a token, never do.
        logprobs, entropies, reference_logprobs: [B, T], for objectives that name them; entropies in nats.
        truncated: bool [B], which answers met the limit of length.
        problem_ids: B names of questions that stay the same from round to round, for objectives that remember.
        step, max_completion_length: for objectives that name them.
        left_out: what an answer gets that the objective takes out of the batch. NaN lets a caller tell these.
        keys: what a warning advises: of ``correct``, where the rewards are no verdicts; of ``group_ids``, where groups
            have one answer. A trainer names its own settings here.
        options: of the objective, such as ``alpha=1.0``.

    Returns:
        float32 [B], or [B, T] if the objective weighs tokens, on the device of the rewards. Answers that do not count
        get 0.

    Raises:
        InputError: a ValueError. The objective is unknown or has no such option, something it needs is not given, or
            an argument has the wrong length or impossible values, such as NaN at a token that counts.
    """
    objective = make_without_memory(objective, options)
    rows = {"correct": correct, "valid": valid, "mean_logprobs": mean_logprobs, "lengths": lengths, "mask": mask}
    rows |= {"logprobs": logprobs, "entropies": entropies, "reference_logprobs": reference_logprobs}
    layout, given = arrange(rewards, group_ids, rows | {"truncated": truncated})
    given |= {"problem_ids": layout.first_of(problem_ids), "step": step, "max_completion_length": max_completion_length}
    asked = find_inputs(objective)
    if any(given.get(name) is None for name in asked):
        check_inputs(objective, given)
    warn_of_rows(layout, given, verdicts=correct is None, alone="problem_ids" in asked, keys=keys)
    return layout.unpack(call_by_name(objective, given)).float().nan_to_num(nan=left_out)


def make_without_memory(objective: str | Objective, options: dict[str, Any]) -> Objective:
    """Return the objective; refuse the name of one that remembers, as a call could not give its memory to the next."""
    if isinstance(objective, str) and remembers(objective):
        how = f"make it once, make_objective({objective!r})"
        raise InputError(f"objective={objective!r} remembers earlier rounds: {how}")
    return make_objective(objective, **options)


def arrange(
    rewards: Tensor, group_ids: Sequence[Hashable] | Tensor, rows: dict[str, Tensor | None]
) -> tuple[Layout, dict[str, Any]]:
    """Return where each answer lies, and what is given or follows from it as [Q, G, ...]."""
    rewards = torch.as_tensor(rewards).float()
    layout = lay_out(group_ids, rewards)
    known = {name: torch.as_tensor(values) for name, values in rows.items() if values is not None}
    rows = {name: values.detach().to(rewards.device) for name, values in known.items()}
    check_rows(rows, len(rewards))
    return layout, {name: layout.pack(values) for name, values in describe(rewards, rows).items()}


def warn_of_rows(
    layout: Layout, given: dict[str, Any], *, verdicts: bool, alone: bool, keys: Mapping[str, str]
) -> None:
    """Warn of rewards that should be verdicts and are not, and of answers that cannot be alone in a group but are."""
    if verdicts and not torch.equal(given["rewards"], given["correct"].float()):
        how = f"an answer counts as correct above {CORRECT_ABOVE}. {keys.get('correct', 'Pass correct, the verdicts')}"
        warnings.warn(f"rewards are not verdicts of 1 and 0: {how}", stacklevel=3)
    counted = given["valid"].any(dim=1)  # [Q]
    singles = (counted & (layout.sizes == 1)).sum().item()
    if singles and not alone:
        found = f"{singles} of {counted.sum()} groups have one answer"
        advice = f". {keys['group_ids']}" if "group_ids" in keys else ""
        warnings.warn(f"{found}: nothing to compare{advice}", stacklevel=3)


def try_objective(objective: Objective, size: int) -> bool:
    """Weigh a made-up group of this size, so that options the objective refuses are refused before any sampling.

    Returns:
        whether it takes answers out of the batch.

    Raises:
        ValueError: what the objective says of its options.
    """
    tokens = torch.full((size, 3), -0.5)
    per_token = {"logprobs": tokens, "entropies": -tokens, "reference_logprobs": tokens, "mask": tokens < 0}
    others = {"truncated": tokens[:, 0] > 0, "problem_ids": ["a"] * size, "step": 0, "max_completion_length": 3}
    rewards = (torch.arange(size) == 0).float()
    others |= {"objective": copy.deepcopy(objective) if remembers(objective) else objective, "left_out": torch.nan}
    with fixed_seed(0, rewards.device):
        return group_advantages(rewards, [0] * size, **per_token, **others).isnan().any().item()


@contextmanager
def fixed_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Make an objective's random numbers the same in all processes, and leave those outside as they are."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would take longer, and seed other devices too
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class Layout(NamedTuple):
    """Where in [Q, G] each of B answers lies."""

    group: Tensor  # int64 [B]
    place: Tensor  # int64 [B], in its group
    num_groups: int  # Q
    size: int  # G, the largest group
    sizes: Tensor  # int64 [Q], the answers of each group

    def pack(self, rows: Tensor) -> Tensor:
        """Return rows [B, ...] as [Q, G, ...], with 0 where a group has no more answers."""
        packed = rows.new_zeros(self.num_groups, self.size, *rows.shape[1:])
        packed[self.group, self.place] = rows
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """Return [Q, G, ...] as rows [B, ...]."""
        if packed.shape[:2] != (self.num_groups, self.size):
            raise InputError(f"the objective returned {tuple(packed.shape)} for groups {self.num_groups, self.size}")
        return packed[self.group, self.place]

    def first_of(self, names: Sequence[str] | None) -> list[str] | None:
        """Return the name of each group's first answer."""
        if names is None:
            return None
        if len(names) != len(self.group):
            raise InputError(f"problem_ids has {len(names)} entries, rewards {len(self.group)}")
        return [names[row] for row in (self.place == 0).nonzero()[:, 0].tolist()]


def lay_out(group_ids: Sequence[Hashable] | Tensor, rewards: Tensor) -> Layout:
    """Give each answer its place; groups and answers keep the order in which they come.

    Raises:
        InputError: the rewards are not [B], or the ids are missing or of another number.
    """
    if rewards.dim() != 1 or not len(rewards):
        raise InputError(f"rewards has the shape {tuple(rewards.shape)}: [B], one number an answer")
    if group_ids is None or len(group_ids) != len(rewards):
        found = "None" if group_ids is None else f"{len(group_ids)} entries"
        raise InputError(f"group_ids: {found}, must say for each of {len(rewards)} rewards which group it is of")
    ids = group_ids.tolist() if hasattr(group_ids, "tolist") else list(group_ids)
    if not all(isinstance(name, Hashable) for name in ids):
        raise InputError(f"group_ids has entries such as {ids[0]}: one number or string an answer")
    sizes: dict[Hashable, int] = {}
    numbers: dict[Hashable, int] = {}
    group, place = [], []
    for name in ids:
        group.append(numbers.setdefault(name, len(numbers)))
        place.append(sizes.get(name, 0))
        sizes[name] = place[-1] + 1
    as_tensor = {"dtype": torch.int64, "device": rewards.device}
    in_order = torch.tensor(list(sizes.values()), **as_tensor)
    return Layout(
        torch.tensor(group, **as_tensor), torch.tensor(place, **as_tensor), len(sizes), max(place) + 1, in_order
    )


def describe(rewards: Tensor, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs of objectives that follow from what is given, [B] or [B, T] each."""
    mask, lengths, means = rows.get("mask"), rows.get("lengths"), rows.pop("mean_logprobs", None)
    rows = rows | {"mask": mask.bool()} if mask is not None else rows
    if lengths is None and mask is not None:
        rows["lengths"] = lengths = mask.bool().sum(dim=1)
    valid = rows["valid"].bool() if "valid" in rows else torch.ones_like(rewards, dtype=torch.bool)
    valid = valid & ~rewards.isnan() & (True if lengths is None else lengths > 0)
    check_tokens(rows, valid)
    rewards = rewards.where(valid, 0.0)
    if not rewards.isfinite().all():
        raise InputError("rewards: an infinite one; NaN means that an answer has none")
    if "correct" in rows:
        rows["correct"] = rows["correct"].bool()
    else:
        if ((rewards.abs() == 1) | ~valid).all():  # 1 and -1
            rewards = (rewards > 0).float()
        rows["correct"] = rewards > CORRECT_ABOVE
    if means is None and "logprobs" in rows and mask is not None:
        means = token_mean(rows["logprobs"], rows["mask"])
    if means is not None:
        rows["confidence"] = read_confidence(means, valid)
    return rows | {"rewards": rewards, "valid": valid}


def are_verdicts(rewards: Tensor) -> bool:
    """Whether all rewards are 1 and 0, or all 1 and -1; NaN, which is none, does not matter."""
    rewards = rewards[~rewards.isnan()]
    return any(torch.isin(rewards, rewards.new_tensor(values)).all().item() for values in ((0.0, 1.0), (-1.0, 1.0)))


def read_confidence(means: Tensor, valid: Tensor) -> Tensor:
    """Return exp(mean log-probability), float32 [B]; 1 for answers that do not count.

    Raises:
        InputError: a value is NaN, or so far above 0 that it is no log-probability.
    """
    means = means.double().where(valid, 0.0)
    if not (means <= 1e-3).all():
        worst = means[~(means <= 1e-3)][0].item()
        raise InputError(f"mean_logprobs: {worst:g} is not a log-probability; must be 0 or less, in nats")
    return means.clamp(max=0.0).exp().float()


def check_tokens(rows: dict[str, Tensor], valid: Tensor) -> None:
    """Raise InputError if a value is NaN at a token of an answer that counts: the objective would leave it out."""
    for name in set(PER_TOKEN[1:]) & set(rows):
        unknown = rows[name].isnan() & valid[:, None]
        if (unknown & rows["mask"] if "mask" in rows else unknown).any():
            raise InputError(f"{name}: NaN at a token of an answer that counts")


def check_rows(rows: dict[str, Tensor], num_answers: int) -> None:
    """Raise InputError for the first argument that is not [B], or [B, T] with one T."""
    width = next((values.shape[-1] for name, values in rows.items() if name in PER_TOKEN), None)
    for name, values in rows.items():
        shape = (num_answers, width) if name in PER_TOKEN else (num_answers,)
        if tuple(values.shape) != shape:
            raise InputError(f"{name} has the shape {tuple(values.shape)}, must be {shape}")


def needed_inputs(objective: Objective) -> set[str]:
    """Return the names that an objective, or one inside it, cannot do without."""
    call = objective if not hasattr(objective, "inputs") else objective.__call__
    parameters = inspect.signature(call).parameters
    inside = needed_inputs(objective.objective) if hasattr(objective, "objective") else set()
    return inside | {name for name in find_inputs(objective) & set(parameters) if is_needed(parameters[name])}


def check_inputs(objective: Objective, given: dict[str, Any]) -> None:
    """Raise InputError if the objective needs what is not given."""
    missing = sorted(name for name in needed_inputs(objective) if given.get(name) is None)
    if missing:
        names = "; ".join(f"{name} (pass {SOURCES.get(name, name)})" for name in missing)
        raise InputError(f"the objective needs {names}")
