"""The structure that travels from sampling to the update, and the contract of the engines that make it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lens.errors import ConfigError
from lens.problems.prompts import Prompt


@dataclass(frozen=True)
class Rollouts:
    """Q questions with G completions each, as token ids from end to end; row q * G + g is completion g of question q.

    Attributes:
        prompts: Q prompts.
        num_generations: G.
        completion_ids: int64 [Q*G, T], right-padded with 0; an end token is part of its completion.
        logprobs: float32 [Q*G, T], log-probability under the engine (and its temperature) of each sampled token.
        lengths: int64 [Q*G], tokens of each completion.
        finish_reasons: Q*G of "stop" (the model ended it) or "length" (it was cut).
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
        """bool [Q*G, T], True on real tokens."""
        return torch.arange(self.completion_ids.shape[1]) < self.lengths[:, None]

    @property
    def truncated(self) -> Tensor:
        """bool [Q*G], completions that the token limit cut."""
        return torch.tensor([reason == "length" for reason in self.finish_reasons])

    @property
    def confidence(self) -> Tensor:
        """float32 [Q*G], geometric-mean probability of the sampled tokens under the engine."""
        return geometric_mean_probability(self.logprobs, self.mask)


def geometric_mean_probability(logprobs: Tensor, mask: Tensor) -> Tensor:
    """exp of the mean log-probability over a completion's tokens: [N, T], [N, T] -> [N] (paper, section 3)."""
    lengths = mask.sum(dim=1).clamp(min=1)
    return ((logprobs.double() * mask).sum(dim=1) / lengths).exp().float()


class Sampler(Protocol):
    """A rollout engine.

    ``parity_every`` says how often it is compared with the trainer (lens/sampling/syncing.py), and
    ``max_logp_difference`` how far they may be apart; None where the engine is the trainer's own module.
    """

    parity_every: int | None
    max_logp_difference: float | None

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
        """num_generations completions of each prompt; the same arguments give the same completions.

        Each question draws from a seed of its own, `derive_seed(seed, problem_id)`: never from its place in the batch.
        ``progress`` is the title of a progress bar; None shows none.
        """

    def sync(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the policy's current weights; tied ones come under each of their names."""

    def close(self) -> None:
        """Free what the engine holds."""


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the model's generation config may name several, the tokenizer one.

    Raises:
        ConfigError: there is none, so that no completion could end.
    """
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    found = sorted({token for token in [*named, tokenizer.eos_token_id] if token is not None})
    if not found:
        raise ConfigError("model.name_or_path", tokenizer.name_or_path, "a tokenizer with an end-of-sequence token")
    return found
