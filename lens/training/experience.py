"""Holds what an update learns from, and decides which answers may teach.

An `Experience` is rollouts with verdicts, rewards and advantages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from lens.grading.judge import MAY_TEACH, Unjudgeable
from lens.losses.importance import ImportanceSampling, importance_weights
from lens.objectives import calibrated_rewards
from lens.objectives.inputs import call_by_name
from lens.sampling.rollouts import Rollouts, geometric_mean_probability, join_values


@dataclass(frozen=True)
class Experience:
    """Rollouts of Q questions x G completions of at most T tokens, with verdicts and advantages.

    Attributes:
        rollouts: the completions; row q * G + g is completion g of question q.
        levels: Q levels; None where the source has none.
        verdicts: Q*G verdicts of the grader.
        correct: bool [Q, G].
        valid: bool [Q, G], answers that may teach: their verdict allows it, and they are not masked as truncated.
        rewards: float32 [Q, G], 1 or 0 by the verdict, or the verifier's score in [0, 1]; after reward shaping.
        confidence: float32 [Q, G], geometric-mean token probability.
        calibrated: float32 [Q, G], the paper's calibrated reward, whatever the objective.
        advantages: float32 [Q, G], or [Q, G, T] where each token has its own, as the objective computed them. NaN takes
            an answer out of the batch.
        old_logprobs: float32 [Q*G, T], log-probabilities under the old policy in the surrogate's ratio. None: the
            policy's own at the update.
        trainer_logprobs: float32 [Q*G, T], log-probabilities under the policy. None: not recomputed.
        reference_logprobs: float32 [Q*G, T], log-probabilities under the reference model. None: beta is 0.
        importance: float32 [Q*G, T], importance-sampling weight of each token. None: 1 for all.
        entropies: float32 [Q*G, T], entropy of the policy at each token, in nats. None: not recomputed.
    """

    rollouts: Rollouts
    levels: Sequence[int | None]
    verdicts: Sequence[str]
    correct: Tensor
    valid: Tensor
    rewards: Tensor
    confidence: Tensor
    calibrated: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None = None
    trainer_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    importance: Tensor | None = None
    entropies: Tensor | None = None

    def split(self, num_prompts: int) -> list[Experience]:
        """Split into mini-batches of num_prompts questions each, in order. A group is never divided."""
        places = range(len(self.levels))
        return [self.take_questions(places[start : start + num_prompts]) for start in places[::num_prompts]]

    def take_questions(self, questions: Sequence[int]) -> Experience:
        """Return the experience of some questions, given by their places."""
        values = {name: value for name, value in vars(self).items() if name != "rollouts" and value is not None}
        taken = {name: self.rollouts.take_values(value, questions) for name, value in values.items()}
        return replace(self, rollouts=self.rollouts.take_questions(questions), **taken)

    @classmethod
    def join(cls, parts: Sequence[Experience]) -> Experience:
        """Return the experience of all parts, one after the other; their advantages still have to be computed."""
        names = [
            name
            for name, value in vars(parts[0]).items()
            if name not in ("rollouts", "advantages") and value is not None
        ]
        joined = {name: join_values([vars(part)[name] for part in parts]) for name in names}
        rollouts = Rollouts.join([part.rollouts for part in parts])
        return replace(parts[0], rollouts=rollouts, advantages=torch.zeros(joined["correct"].shape), **joined)

    def state(self) -> dict[str, Any]:
        """Return plain lists, numbers and tensors, so that torch can load them with weights_only."""
        return {**vars(self), "rollouts": self.rollouts.state()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Experience:
        """Make an experience from what `state` returned."""
        return cls(**{**state, "rollouts": Rollouts.from_state(state["rollouts"])})

    def to_frame(self) -> pd.DataFrame:
        """Return a row per completion, as stored in a run folder's rollouts/step_*.parquet."""
        r, generations = self.rollouts, self.rollouts.num_generations
        lengths = r.lengths.tolist()
        per_token = {"entropies": self.entropies, "reference_logprobs": self.reference_logprobs}
        if self.advantages.dim() == 3:
            per_token["token_advantages"] = self.advantages.flatten(0, 1)
        return pd.DataFrame(
            {
                "problem_id": [prompt.problem_id for prompt in r.prompts for _ in range(generations)],
                "level": pd.array([level for level in self.levels for _ in range(generations)], dtype="Int64"),
                "sample": list(range(generations)) * len(r.prompts),
                "prompt_ids": [list(prompt.token_ids) for prompt in r.prompts for _ in range(generations)],
                "completion_ids": [row[:n].tolist() for row, n in zip(r.completion_ids, lengths, strict=True)],
                "logprobs": [row[:n].numpy() for row, n in zip(r.logprobs, lengths, strict=True)],
                "length": lengths,
                "finish_reason": r.finish_reasons,
                "text": r.texts,
                "verdict": self.verdicts,
                "valid": self.valid.flatten().numpy(),
                "confidence": self.confidence.flatten().numpy(),
                "reward": self.rewards.flatten().numpy(),
                "calibrated_reward": self.calibrated.flatten().numpy(),
                "advantage": self.mean_advantages.flatten().numpy(),
            }
            | {
                name: [row[:n].numpy() for row, n in zip(values, lengths, strict=True)]
                for name, values in per_token.items()
                if values is not None
            }
        )

    def inputs(
        self, *, confidence_from: str = "sampler", step: int = 0, max_completion_length: int | None = None
    ) -> dict[str, Any]:
        """Return what an objective can ask for, by its name in lens/objectives/inputs.py; None: it is not known."""
        r, shape = self.rollouts, self.correct.shape
        logprobs = self.trainer_logprobs if confidence_from == "trainer" else r.logprobs
        per_token = {
            "mask": r.mask,
            "logprobs": logprobs,
            "entropies": self.entropies,
            "reference_logprobs": self.reference_logprobs,
        }
        return {
            "rewards": self.rewards,
            "correct": self.correct,
            "valid": self.valid,
            "truncated": r.truncated.view(shape),
            "confidence": self.confidence,
            "lengths": r.lengths.view(shape),
            **{name: None if values is None else values.view(*shape, -1) for name, values in per_token.items()},
            "problem_ids": [prompt.problem_id for prompt in r.prompts],
            "step": step,
            "max_completion_length": max_completion_length,
        }

    def weigh(self, objective: Callable[..., Tensor], **known: Any) -> Experience:
        """Return this experience with the advantages of an objective; ``known`` are keywords of `inputs`."""
        return replace(self, advantages=call_by_name(objective, self.inputs(**known)))

    @property
    def mean_advantages(self) -> Tensor:
        """[Q, G], the mean over the tokens of each answer."""
        if self.advantages.dim() == 2:
            return self.advantages
        return mean_over_tokens(self.advantages, self.rollouts)


def mean_over_tokens(values: Tensor, rollouts: Rollouts) -> Tensor:
    """Return the mean of values [Q, G, T] over the tokens of each answer, [Q, G]."""
    mask = rollouts.mask.view(values.shape)
    return (values * mask).sum(dim=2) / mask.sum(dim=2).clamp(min=1)


def judge_answers(
    verdicts: Sequence[str], rollouts: Rollouts, unjudgeable: Unjudgeable, mask_truncated: bool
) -> tuple[Tensor, Tensor]:
    """Return which answers are correct and which may teach, bool [Q, G] each.

    One whose gold answer cannot be judged does not teach; nor does one cut by the token limit, with mask_truncated.

    Args:
        verdicts, rollouts: see `make_experience`.
        unjudgeable: what an answer counts as that cannot be judged although its gold answer can: "incorrect", or
            "invalid", which does not teach.
        mask_truncated: answers cut by the token limit do not teach.
    """
    shape = (len(rollouts.prompts), rollouts.num_generations)
    correct = torch.tensor([verdict == "correct" for verdict in verdicts]).view(shape)
    valid = torch.tensor([verdict in MAY_TEACH[unjudgeable] for verdict in verdicts]).view(shape)
    return correct, valid & ~rollouts.truncated.view(shape) if mask_truncated else valid


def make_experience(
    rollouts: Rollouts,
    levels: Sequence[int | None],
    verdicts: Sequence[str],
    objective: Callable[..., Tensor],
    *,
    scores: Sequence[float] | None = None,
    unjudgeable: Unjudgeable = "incorrect",
    trainer_logprobs: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    entropies: Tensor | None = None,
    old_from: Literal["sampler", "trainer", "current"] = "sampler",
    confidence_from: Literal["sampler", "trainer"] = "sampler",
    mask_truncated: bool = False,
    importance_sampling: ImportanceSampling = "none",
    importance_cap: float = 2.0,
    reward_shaping: Callable[..., Tensor] | None = None,
    **known: Any,
) -> Experience:
    """Decide which answers may teach, and compute their advantages.

    Args:
        rollouts, levels, verdicts: Q questions x G completions, judged.
        objective: see lens/objectives/inputs.py; it returns advantages [Q, G] or [Q, G, T].
        scores: Q*G scores in [0, 1], the rewards before shaping. None: 1 for a correct answer, and 0 for any other.
        unjudgeable, mask_truncated: see `judge_answers`.
        trainer_logprobs: [Q*G, T], the policy's own log-probabilities. "trainer" and importance sampling need them.
        reference_logprobs, entropies: see `Experience`.
        old_from: whose log-probabilities are the old ones in the surrogate's ratio. "current": the update's own.
        confidence_from: whose log-probabilities define the confidence.
        importance_sampling, importance_cap: see `importance_weights`. "none" weighs every token by 1.
        reward_shaping: changes the rewards, with the same inputs as an objective.
        known: other keywords of `Experience.inputs`.
    """
    correct, valid = judge_answers(verdicts, rollouts, unjudgeable, mask_truncated)  # [Q, G] each
    by_source = {"sampler": rollouts.logprobs, "trainer": trainer_logprobs}  # [Q*G, T] each
    confidence = geometric_mean_probability(by_source[confidence_from], rollouts.mask).view_as(correct)  # [Q, G]
    compared = trainer_logprobs, rollouts.logprobs, rollouts.mask
    weighs = importance_sampling != "none"
    importance = importance_weights(*compared, importance_sampling, cap=importance_cap) if weighs else None
    graded = Experience(
        rollouts=rollouts,
        levels=levels,
        verdicts=verdicts,
        correct=correct,
        valid=valid,
        rewards=correct.float() if scores is None else torch.tensor(scores).view(correct.shape),
        confidence=confidence,
        calibrated=calibrated_rewards(correct, confidence, valid=valid),
        advantages=torch.zeros_like(confidence),
        old_logprobs=by_source.get(old_from),
        trainer_logprobs=trainer_logprobs,
        reference_logprobs=reference_logprobs,
        importance=importance,
        entropies=entropies,
    )
    known["confidence_from"] = confidence_from
    if reward_shaping is not None:
        graded = replace(graded, rewards=call_by_name(reward_shaping, graded.inputs(**known)))
    return graded.weigh(objective, **known)
