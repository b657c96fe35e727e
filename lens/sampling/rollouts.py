"""Defines `Rollouts`, which travel from sampling to the update, and `Sampler`, the contract of the engines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lens.errors import ConfigError
from lens.problems.prompts import Prompt

V = TypeVar("V", Sequence[Any], Tensor)


@dataclass(frozen=True)
class Rollouts:
    """Q questions with G completions each, as token ids from end to end.

    Row q * G + g is completion g of question q. T is the number of tokens of the longest completion.

    Attributes:
        prompts: Q prompts.
        num_generations: G.
        completion_ids: int64 [Q*G, T], right-padded with 0. An end token is part of its completion.
        logprobs: float32 [Q*G, T], log-probability of each sampled token under the engine, at the sampling temperature.
        lengths: int64 [Q*G], tokens of each completion.
        finish_reasons: Q*G strings, "stop" (the model ended the completion) or "length" (the token limit cut it).
        texts: Q*G completions as text, for the grader and the reader.
    """

    prompts: Sequence[Prompt]
    num_generations: int
    completion_ids: Tensor
    logprobs: Tensor
    lengths: Tensor
    finish_reasons: Sequence[str]
    texts: Sequence[str]

    @property
    def mask(self) -> Tensor:
        """bool [Q*G, T], True on real tokens, False on padding."""
        return torch.arange(self.completion_ids.shape[1]) < self.lengths[:, None]

    @property
    def truncated(self) -> Tensor:
        """bool [Q*G], True for completions that the token limit cut."""
        return torch.tensor([reason == "length" for reason in self.finish_reasons])

    @property
    def confidence(self) -> Tensor:
        """float32 [Q*G], geometric-mean probability of the sampled tokens under the engine."""
        return geometric_mean_probability(self.logprobs, self.mask)

    def take_questions(self, questions: Sequence[int]) -> Rollouts:
        """Return the rollouts of some questions, given by their places."""
        values = {name: value for name, value in vars(self).items() if name != "num_generations"}
        return replace(self, **{name: self.take_values(value, questions) for name, value in values.items()})

    def take_values(self, values: V, questions: Sequence[int]) -> V:
        """Return the values of some questions, given by their places.

        Args:
            values: Q or Q*G values, which tells whether they belong to questions or to completions.
            questions: the places.

        Raises:
            ValueError: there are other than Q or Q*G values.
        """
        if len(values) == len(self.prompts):
            places = list(questions)
        elif len(values) == len(self.lengths):
            places = [
                question * self.num_generations + g for question in questions for g in range(self.num_generations)
            ]
        else:
            numbers = f"{len(self.prompts)} questions and {len(self.lengths)} completions"
            raise ValueError(f"{len(values)} values, but {numbers}")
        if isinstance(values, Tensor):
            return values[torch.tensor(places, dtype=torch.long)]
        return type(values)(values[place] for place in places)

    @classmethod
    def join(cls, parts: Sequence[Rollouts]) -> Rollouts:
        """Return the rollouts of all parts, one after the other. They have one number of completions a question."""
        return replace(parts[0], **{name: join_values([vars(part)[name] for part in parts]) for name in JOINED})

    def state(self) -> dict[str, Any]:
        """Return plain lists, numbers and tensors, so that torch can load them with weights_only."""
        return {**vars(self), "prompts": [[prompt.problem_id, list(prompt.token_ids)] for prompt in self.prompts]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Rollouts:
        """Make rollouts from what `state` returned."""
        return cls(**{**state, "prompts": [Prompt(problem_id, tuple(ids)) for problem_id, ids in state["prompts"]]})


JOINED = [field.name for field in fields(Rollouts) if field.name != "num_generations"]


def join_values(parts: Sequence[V]) -> V:
    """Join values of questions or of completions. Tensors are padded with 0 on the right to one width."""
    if not isinstance(parts[0], Tensor):
        return type(parts[0])(value for part in parts for value in part)
    width = max(part.shape[-1] for part in parts)
    same = parts[0].dim() == 1
    return torch.cat([part if same else nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts])


def geometric_mean_probability(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return exp of the mean log-probability over each completion's real tokens: [N, T], [N, T] -> float32 [N].

    This is pibar, the paper's confidence (section 5).
    """
    lengths = mask.sum(dim=1).clamp(min=1)
    return ((logprobs.double() * mask).sum(dim=1) / lengths).exp().float()


class Sampler(Protocol):
    """A rollout engine.

    Attributes:
        parity_every: syncs between two comparisons with the trainer (lens/training/weight_sync.py). 0: only after the
            first.
        max_logp_difference, max_mean_logp_difference: largest and mean difference that such a comparison may find
            between log-probabilities of a token. Both are None if the engine samples with the trainer's own module.
    """

    parity_every: int
    max_logp_difference: float | None
    max_mean_logp_difference: float | None

    def sample(
        self,
        prompts: Sequence[Prompt],
        num_generations: int,
        seed: int,
        *,
        max_completion_length: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        progress: str | None = None,
    ) -> Rollouts:
        """Sample num_generations completions of each prompt. The same arguments give the same completions.

        Each question has a seed of its own, `derive_seed(seed, problem_id)`. Its place in the batch does not matter.

        Args:
            prompts: the questions.
            num_generations: completions of each.
            seed: seed of this call.
            max_completion_length: tokens after which a completion is cut.
            temperature: divides the logits; 0 is greedy.
            top_p: keeps the smallest set of most likely tokens with at least this mass. 1 keeps all.
            progress: title of a progress bar. None shows no bar.
        """

    def sync(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the policy's current weights. Tied weights come once under each of their names."""

    def close(self) -> None:
        """Free the engine's memory."""


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every token that ends a completion: those of the model's generation config and that of the tokenizer.

    Raises:
        ConfigError: there is none, so no completion could end.
    """
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    found = sorted({token for token in [*named, tokenizer.eos_token_id] if token is not None})
    if not found:
        valid = "must have a tokenizer with an end-of-sequence token"
        raise ConfigError("model.name_or_path", tokenizer.name_or_path, valid)
    return found
