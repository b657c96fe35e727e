"""LENS inside verl 0.9: each objective is an advantage estimator that one line of verl's config chooses.

    export VERL_USE_EXTERNAL_MODULES=lens.integrations.verl
    python -m verl.trainer.main_ppo algorithm.adv_estimator=lens +algorithm.objective_options.alpha=0.25 …

verl imports this module in each of its processes, and the module registers the objectives under their names. `grpo` and
`rloo` stay verl's own, which compute the same.

verl calls an estimator with rewards, mask and group ids alone. What else an objective asks for (log-probabilities,
entropies) lies in the queue of verl's trainer. So each trainer that verl knows is replaced by a subclass of itself that
reads the queue just before the estimator runs. With an estimator of verl's own the subclass does nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lens.integrations.adapting import per_token
from lens.integrations.groups import CORRECT_ABOVE, are_verdicts, group_advantages, needed_inputs, try_objective
from lens.integrations.memory import MEMORY, read_memory, write_memory
from lens.integrations.metrics import measure_groups
from lens.integrations.names import NAMES, Objective, make_objective, remembers
from lens.integrations.verl_checks import VERDICT_INPUTS, check_config, options_of
from lens.objectives.inputs import InputError, find_inputs

# What an objective names, and the field of verl's queue that holds it, [B, T] each.
FIELDS = {"logprobs": "old_log_probs", "entropies": "entropy", "reference_logprobs": "ref_log_prob"}
# What a warning advises.
KEYS = {"group_ids": "actor_rollout_ref.rollout.n must be above 1"}
REGISTERED: set[str] = set()  # the names that this module has given to verl


class Round(NamedTuple):
    """What verl's queue holds of B answers beside rewards, in the order in which the estimator gets them."""

    objective: Objective
    keys: Sequence[str]  # B of the form uid_session_output
    mask: Tensor  # bool [B, T], before rollout correction takes tokens out
    inputs: dict[str, Any]  # what else the objective may ask for
    metrics: dict[str, Any]  # where verl collects what it logs of this step
    token_mean: bool  # whether verl's loss is a mean over tokens


CURRENT: ContextVar[Round | None] = ContextVar("CURRENT", default=None)


@contextmanager
def handed_over(batch: Round) -> Iterator[None]:
    """Let the estimator see this round."""
    token = CURRENT.set(batch)
    try:
        yield
    finally:
        CURRENT.reset(token)


# --- the estimator ---------------------------------------------------------------------------------------------------


def make_estimator(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the objective of this name as a function that verl's registry of advantage estimators takes."""

    def estimate(
        token_level_rewards: Tensor,
        response_mask: Tensor,
        index: Sequence[str] | None = None,
        config: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return advantages, and the same as returns: float32 [B, T], 0 outside the mask.

        Args:
            token_level_rewards: [B, T]; the sum over an answer is its reward.
            response_mask: [B, T], the tokens that the loss takes.
            index: B ids; answers with the same one are answers to the same question.
            config: verl's ``algorithm``, whose ``objective_options`` go to the objective.
            kwargs: what verl has for other estimators.

        Raises:
            InputError: a ValueError. The ids are missing, or something the objective needs is.
        """
        batch = CURRENT.get() or without_queue(name, response_mask, config)
        if index is None:
            raise InputError("uid is missing from the batch: it says which answers are of the same question")
        rewards = token_level_rewards.sum(dim=-1)  # [B]
        final = final_rows(batch.keys).to(rewards.device)  # [B]
        is_final = final == torch.arange(len(final), device=final.device)
        rows = (is_final & batch.mask.any(dim=-1)).nonzero().squeeze(1)  # verl fills batches up with empty answers
        advantages = weigh(batch, rewards, index, rows)
        if advantages.dim() == 2 and not is_final.all():
            raise InputError(f"algorithm.adv_estimator={name} weighs tokens, which sessions of several outputs lack")
        advantages = per_token(advantages[final], response_mask)  # outputs of a session get what its last one earned
        return advantages, advantages

    return estimate


def weigh(batch: Round, rewards: Tensor, index: Sequence[str], rows: Tensor) -> Tensor:
    """Return the advantages of these rows, 0 for others, [B] or [B, T], and log what kinds of groups there are."""
    advantages = torch.zeros_like(rewards, dtype=torch.float32)
    if not len(rows):
        return advantages
    rewards, ids, mask = rewards[rows], [index[row] for row in rows.tolist()], batch.mask[rows]
    inputs = {name: take(values, rows) for name, values in batch.inputs.items()}
    answers = {"correct": read_verdicts(rewards), "lengths": mask.sum(dim=-1)}
    of_rows = group_advantages(rewards, ids, mask=mask, objective=batch.objective, keys=KEYS, **answers, **inputs)
    batch.metrics.update(measure_groups(of_rows, rewards, ids, **answers, token_mean=batch.token_mean))
    advantages = advantages.new_zeros(len(advantages), *of_rows.shape[1:])
    advantages[rows] = of_rows
    return advantages


def take(values: Any, rows: Tensor) -> Any:
    """Return these rows of what is [B, ...] or a list of B; a number is of all."""
    if isinstance(values, Tensor):
        return values[rows.to(values.device)]
    return [values[row] for row in rows.tolist()] if isinstance(values, list) else values


def without_queue(name: str, mask: Tensor, config: Mapping[str, Any] | None) -> Round:
    """Return the round of a trainer that is not ours, such as the legacy one: verdicts and lengths alone.

    Raises:
        InputError: the objective needs more.
    """
    objective = make_objective(name, **options_of(config or {}))
    if remembers(objective) or (missing := needed_inputs(objective) - VERDICT_INPUTS):
        what = "its memory" if remembers(objective) else " and ".join(sorted(missing))
        raise InputError(
            f"algorithm.adv_estimator={name} needs {what}, which this trainer does not hand over: "
            "set trainer.use_v1=true, and VERL_USE_EXTERNAL_MODULES=lens.integrations.verl on every node"
        )
    return Round(objective, [f"_{row}_0" for row in range(len(mask))], mask.bool(), {}, {}, False)


def final_rows(keys: Sequence[str]) -> Tensor:
    """Return for each row the row of the last output of its session, int64 [B]."""
    sessions = [key.rsplit("_", 1)[0] for key in keys]
    outputs = [int(key.rsplit("_", 1)[1]) for key in keys]
    last: dict[str, int] = {}
    for row, session in enumerate(sessions):
        if outputs[row] >= outputs[last.setdefault(session, row)]:
            last[session] = row
    return torch.tensor([last[session] for session in sessions])


def read_verdicts(rewards: Tensor) -> Tensor | None:
    """Return which answers are correct, bool [B], if the rewards [B] are no verdicts; else None. Warns."""
    if are_verdicts(rewards):
        return None
    warnings.warn(
        f"the rewards of reward.custom_reward_function are not verdicts of 1 and 0, or 1 and -1: an answer counts as "
        f"correct above {CORRECT_ABOVE}",
        stacklevel=3,
    )
    return rewards > CORRECT_ABOVE


# --- the trainer -----------------------------------------------------------------------------------------------------


class LensTrainer:
    """Goes before a trainer of verl's among the bases of a class, and hands its batches to the estimator.

    Raises:
        ValueError: while the trainer is made, before anything is loaded: the estimator is unknown, its options are, or
            verl's config leaves out what the objective needs.
    """

    def __init__(self, config: Any) -> None:
        from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

        self.objective = None
        name = str(config.algorithm.adv_estimator)
        if name not in ADV_ESTIMATOR_REGISTRY:
            raise InputError(f"algorithm.adv_estimator={name}: one of {', '.join(sorted(ADV_ESTIMATOR_REGISTRY))}")
        if name in REGISTERED:
            self.objective = make_objective(name, **options_of(config.algorithm))
            check_config(config, self.objective)
            try_objective(self.objective, max(2, config.actor_rollout_ref.rollout.n))
        elif options := options_of(config.algorithm):
            how = f"no effect on algorithm.adv_estimator={name}, which is verl's own"
            warnings.warn(f"algorithm.objective_options has {how}: {', '.join(options)}", stacklevel=2)
        super().__init__(config)

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        if self.objective is None:
            return super()._compute_advantage(batch, metrics)
        with handed_over(self.read_round(batch, metrics)):
            return super()._compute_advantage(batch, metrics)

    def read_round(self, batch: Any, metrics: dict[str, Any]) -> Round:
        """Return what the queue holds of the batch beside rewards, of what the objective asks for.

        Raises:
            InputError: the problems cannot be told apart from round to round, and the objective remembers them.
        """
        import transfer_queue

        asked = find_inputs(self.objective)
        names = ["logprobs"] if asked & {"confidence", "logprobs"} else []
        names += [name for name in FIELDS if name in asked - {"logprobs"}]
        fields = ["response_mask", *(FIELDS[name] for name in names)]
        fields += ["uid", "index", "data_source"] if "problem_ids" in asked else []
        data = transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        inputs = {name: padded(data[FIELDS[name]]).float() for name in names if FIELDS[name] in data}
        inputs["step"] = self.global_steps
        inputs["max_completion_length"] = self.config.data.max_response_length
        mask = padded(data["response_mask"]).bool()
        if "problem_ids" in asked:
            real = mask.any(dim=1).tolist()  # verl fills a batch up with copies that have no token
            inputs["problem_ids"] = name_problems(*(list(data[name]) for name in fields[-3:]), real)
        token_mean = self.config.actor_rollout_ref.actor.loss_agg_mode == "token-mean"
        return Round(self.objective, batch.keys, mask, inputs, metrics, token_mean)

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        if remembers(self.objective):
            folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
            write_memory(folder / MEMORY, self.objective.state_dict())

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps and remembers(self.objective):
            trainer = self.config.trainer
            folder = Path(trainer.default_local_dir) / f"global_step_{self.global_steps}"
            folder = Path(trainer.resume_from_path) if trainer.resume_mode == "resume_path" else folder
            self.objective.load_state_dict(read_memory(folder / MEMORY))


def padded(values: Tensor) -> Tensor:
    """Return a field of the queue as [B, T], filled with 0."""
    return values.to_padded_tensor(0.0) if values.is_nested else values


def name_problems(
    uids: Sequence[str], indices: Sequence[Any], sources: Sequence[str], real: Sequence[bool]
) -> list[str]:
    """Return B names of problems that stay the same from round to round.

    Raises:
        InputError: two problems of real answers have the same name.
    """
    names = [f"{source}/{index}" for source, index in zip(sources, indices, strict=True)]
    pairs = {pair for pair, is_real in zip(zip(names, uids, strict=True), real, strict=True) if is_real}
    if len({name for name, _ in pairs}) < len(pairs):
        raise InputError(
            "extra_info.index of the data must differ from problem to problem: the objective remembers each"
        )
    return names


def register() -> None:
    """Give verl the objectives, and a subclass of each of its trainers. What is registered already stays.

    Raises:
        ImportError: verl is not installed.
    """
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

    for name in NAMES:
        if name not in ADV_ESTIMATOR_REGISTRY:
            register_adv_est(name)(make_estimator(name))
            REGISTERED.add(name)
    try:
        from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    except ImportError as error:
        how = "pip install 'verl[verl-core]==0.9.1' brings what they need, and trainer.use_v1=false does without"
        warnings.warn(f"verl's trainers of version 1 cannot be imported ({error}): {how}", stacklevel=2)
        return
    for mode, trainer in TRAINER_REGISTRY.items():
        if not issubclass(trainer, LensTrainer):
            TRAINER_REGISTRY[mode] = type(f"Lens{trainer.__name__}", (LensTrainer, trainer), {"__module__": __name__})


register()
