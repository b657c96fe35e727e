"""TRL's GRPOTrainer with any objective in place of GRPO's advantages. Sampling, rewards and loss stay TRL's.

TRL computes advantages for a whole generation batch at once, before it shuffles the batch and cuts it up. This is where
the objective comes in: it sees the groups of all processes, and each process takes the rows that it sampled.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object, is_peft_model
from torch import Tensor
from trl import GRPOTrainer

from lens.integrations.groups import CORRECT_ABOVE, are_verdicts, fixed_seed, group_advantages, try_objective
from lens.integrations.memory import MEMORY, read_memory, write_memory
from lens.integrations.metrics import measure_groups
from lens.integrations.names import Objective, make_objective, remembers
from lens.integrations.trl_checks import check_reference, find_warnings
from lens.integrations.trl_recorder import Recorder
from lens.objectives.inputs import find_inputs
from lens.objectives.tokens import token_mean

# What warnings advise.
KEYS = {
    "correct": "Give a reward function of verdicts, and name it: verdict=NAME",
    "group_ids": "num_generations, or num_generations_eval in an evaluation, must be above 1",
}
TOKEN_MEANS = {"bnpo", "cispo", "dapo", "dr_grpo", "luspo", "vespo"}  # losses in which an answer weighs by its length
# Of a model that sees images: what TRL passes to its forward pass.
OF_IMAGES = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


class Scored(NamedTuple):
    """What TRL knows of a generation batch when it computes the rewards, and forgets."""

    rewards: Tensor  # [all answers, reward functions], of all processes
    questions: list[str]  # of this process's answers
    truncated: Tensor  # bool, of this process's answers


class LensGRPOTrainer(GRPOTrainer):
    """A GRPOTrainer whose advantages come from an objective.

    Its log has the kinds of groups (`groups/frac_…`), and the share of signal from negative ones
    (`groups/advantage_share_negative`).

    Args:
        objective: a name of configs/objective, a function, or an object that remembers earlier rounds; see
            `lens.integrations.make_objective`.
        objective_options: its options, such as ``{"alpha": 1.0}``.
        verdict: the name of the reward function that says whether an answer is correct, by a reward above 0.5. The
            objective gets the weighted sum of all rewards beside the verdicts. None: the first reward function.
        arguments, options: those of GRPOTrainer.

    Raises:
        ValueError: the objective or one of its options does not exist, what it needs is not computed under this
            config, or no reward function has the name of the verdict.
    """

    def __init__(
        self,
        *arguments: Any,
        objective: str | Objective = "lens",
        objective_options: dict[str, Any] | None = None,
        verdict: str | None = None,
        **options: Any,
    ) -> None:
        self.objective = make_objective(objective, **(objective_options or {}))
        super().__init__(*arguments, **options)
        leaves_out = try_objective(self.objective, self.num_generations)
        check_reference(self.objective, self.args.beta)
        names = self.reward_func_names
        if verdict is not None and verdict not in names:
            raise ValueError(f"verdict={verdict!r}: one of the reward functions {', '.join(names)}")
        self.verdict = names.index(verdict) if verdict is not None else 0
        for message in find_warnings(self.args, names if verdict is None else [], leaves_out):
            warnings.warn(message, stacklevel=2)
        self._asked = find_inputs(self.objective)
        self._sampled_from = self.model.get_base_model() if is_peft_model(self.model) else self.model
        self._scored: Scored | None = None
        self._recorder: Recorder | None = None

    def _generate_single_turn(self, *arguments: Any, **options: Any) -> tuple[list, list | None]:
        """Record the log-probabilities of the tokens that transformers samples; other engines have their own."""
        if self._recorder is None or self.use_vllm or self.use_transformers_continuous_batching:
            return super()._generate_single_turn(*arguments, **options)
        with self._recorder.watching(self._sampled_from):
            return super()._generate_single_turn(*arguments, **options)

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> Tensor:
        """Keep what TRL does not return: the rewards, the questions, and which answers the token limit cut."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        truncated = torch.tensor([ids[-1] not in ends for ids in completion_ids_list], device=rewards.device)
        questions = [prompt if isinstance(prompt, str) else json.dumps(prompt, default=str) for prompt in prompts]
        self._scored = Scored(rewards, questions, truncated)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Put the objective's advantages in place of TRL's."""
        if self._asked & {"confidence", "logprobs", "entropies"}:
            self._recorder = Recorder(self.temperature, "entropies" in self._asked)
        batch = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        size = self.num_generations if mode == "train" else self.num_generations_eval
        mask = batch["completion_mask"].bool() & batch.get("tool_mask", batch["completion_mask"]).bool()
        rows = self._describe(batch, mask) | self._read_rewards()
        rows["group_ids"] = torch.arange(len(rows["rewards"])) // size
        memory = mode != "train" and remembers(self.objective)
        objective = copy.deepcopy(self.objective) if memory else self.objective
        with fixed_seed(self.args.seed + self.state.global_step, mask.device):
            advantages = group_advantages(objective=objective, left_out=torch.nan, keys=KEYS, **rows)
        self._log(mode, advantages, rows)
        leave_out(batch, mask, advantages, rows["lengths"], self.accelerator.process_index)
        return batch

    def _read_rewards(self) -> dict[str, Tensor]:
        """Return the weighted sum of the rewards, NaN without any, and the verdicts if there are several functions."""
        of_functions = self._scored.rewards
        rewards = (of_functions * self.reward_weights.to(of_functions.device)).nansum(dim=1)
        verdicts = of_functions[:, self.verdict]
        rewards[verdicts.isnan()] = torch.nan
        single = of_functions.shape[1] == 1
        if not single and not are_verdicts(verdicts):
            name = self.reward_func_names[self.verdict]
            how = f"an answer counts as correct above {CORRECT_ABOVE}. {KEYS['correct']}"
            warnings.warn(f"the rewards of {name} are not verdicts of 1 and 0: {how}", stacklevel=2)
        return {"rewards": verdicts if single else rewards} | ({} if single else {"correct": verdicts > CORRECT_ABOVE})

    def _describe(self, batch: dict[str, Any], mask: Tensor) -> dict[str, Any]:
        """Return what the objective asks for, of all processes' answers."""
        asked, gather = self._asked, self.accelerator.gather
        known: dict[str, Tensor | None] = {"reference_logprobs": batch.get("ref_per_token_logps"), "mask": mask.long()}
        if self._recorder is not None:
            known["logprobs"], known["entropies"] = self._rate(batch, mask, self._recorder)
            self._recorder = None  # the logits that it holds are for this batch alone
        per_token = [name for name in known if name in asked and known[name] is not None]
        rows: dict[str, Any] = {
            name: gather(self.accelerator.pad_across_processes(known[name], dim=1)) for name in per_token
        }
        if "confidence" in asked:
            rows["mean_logprobs"] = gather(token_mean(known["logprobs"], mask))
        if "problem_ids" in asked:
            rows["problem_ids"] = gather_object(self._scored.questions)
        rows |= {"lengths": gather(mask.sum(dim=1)), "truncated": gather(self._scored.truncated)}
        return rows | {"step": self.state.global_step, "max_completion_length": self.max_completion_length}

    def _rate(self, batch: dict[str, Any], mask: Tensor, recorder: Recorder) -> tuple[Tensor, Tensor | None]:
        """Return the log-probabilities of the sampled tokens, [B, T], and the entropies there if asked for.

        They are what TRL has computed, what was seen while it sampled, or what the engine returned. Where none of these
        is whole in all processes, they cost a pass over all answers.
        """
        with_entropies = recorder.with_entropies
        seen = recorder.read(batch["prompt_ids"], batch["completion_ids"], mask)
        of_trl, of_engine = (batch.get(f"{name}_per_token_logps") for name in ("old", "sampling"))
        for known in (seen,) if with_entropies else ((of_trl, None), seen, (of_engine, None)):
            if known[0] is not None and self.accelerator.gather(known[0][mask].isfinite().all()).all():
                return known
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attended = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        of_images = {name: batch[name] for name in OF_IMAGES if name in batch}
        size = self.args.per_device_train_batch_size
        with torch.no_grad():
            logprobs, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, attended, mask.shape[1], batch_size=size, compute_entropy=with_entropies, **of_images
            )
        return logprobs, entropies

    def _log(self, mode: str, advantages: Tensor, rows: dict[str, Any]) -> None:
        """Write the advantages where TRL wrote its own, and the metrics of the groups."""
        given = {name: rows[name] for name in ("rewards", "group_ids", "correct", "lengths") if name in rows}
        metrics = measure_groups(advantages, **given, token_mean=self.loss_type in TOKEN_MEANS)
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        of_answers = advantages.nan_to_num(nan=0.0)
        if of_answers.dim() == 2:
            of_answers = of_answers.sum(dim=1) / rows["lengths"].clamp(min=1)
        logged = self._logs["advantages"]
        for _ in range(min(len(logged), len(of_answers))):
            logged.pop()
        logged.extend(of_answers.tolist())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Put the objective's memory into the checkpoint."""
        super()._save_checkpoint(model, trial)
        if hasattr(self.objective, "state_dict") and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            write_memory(folder / MEMORY, self.objective.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take the objective's memory from the checkpoint."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and hasattr(self.objective, "load_state_dict"):
            self.objective.load_state_dict(read_memory(Path(checkpoint) / MEMORY))


def leave_out(batch: dict[str, Any], mask: Tensor, advantages: Tensor, lengths: Tensor, process: int) -> None:
    """Give a process's batch its advantages; those that are NaN leave the loss and its denominator.

    Args:
        batch: TRL's batch, which is changed.
        mask: bool [B, T], the tokens of this process's answers.
        advantages, lengths: of all processes, [all answers] or [all answers, longest], and [all answers].
        process: the number of this process.
    """
    width = mask.shape[1]
    left = advantages.isnan() if advantages.dim() == 1 else advantages.isnan().any(dim=1)
    ours = slice(process * len(mask), (process + 1) * len(mask))
    if left.any():
        batch["tool_mask"] = (mask & ~left[ours].unsqueeze(1)).long()
        batch["num_items_in_batch"] = (lengths * ~left).sum()
    own = advantages[ours].nan_to_num(nan=0.0)
    batch["advantages"] = own if own.dim() == 1 else own[:, :width]
