"""The embedded rollout engine. It samples with the trainer's own module, on any machine that torch runs on."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lens.distributed.collectives import world_size
from lens.errors import ConfigError
from lens.problems.prompts import Prompt
from lens.progress import progress_bar
from lens.sampling.memory import mixes_by_attention
from lens.sampling.rollouts import Rollouts, end_token_ids
from lens.seeding import derive_seed

COMPACT_BELOW = 0.9  # finished rows leave the batch once a smaller share of it is still unfinished


class TransformersSampler:
    """Samples in batches with a key-value cache. Each prompt is computed once for all of its completions.

    Args:
        model: the policy itself. There is no second copy and nothing to synchronise. With several processes, which
            share the policy's weights, each makes a whole copy to sample with.
        tokenizer: its tokenizer.
        max_num_seqs: completions decoded at once. More than that are decoded in several batches.

    Raises:
        ConfigError: there is no end-of-sequence token, or the model cannot be decoded with transformers' own cache.
    """

    parity_every, max_logp_difference, max_mean_logp_difference = 0, None, None

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_num_seqs: int):
        shared = world_size() > 1
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = copy.deepcopy(model).requires_grad_(False).to(device) if shared else model
        self.weights = dict(self.model.named_parameters()) if shared else {}
        self.tokenizer, self.max_num_seqs = tokenizer, max_num_seqs
        self.end_tokens = torch.tensor(end_token_ids(model, tokenizer))
        self.takes_padding = mixes_by_attention(model)
        names = inspect.signature(model.forward).parameters
        self.cache_name = "cache_params" if "cache_params" in names else "past_key_values"
        self._check_decoding()

    @torch.inference_mode()
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
        """See `lens.sampling.rollouts.Sampler`; temperature 0 is greedy."""
        total = len(prompts) * num_generations
        ids = torch.zeros(total, max_completion_length, dtype=torch.long)
        logprobs = torch.zeros(total, max_completion_length)
        lengths = torch.zeros(total, dtype=torch.long)
        uniforms = torch.from_numpy(
            np.concatenate([draw_uniforms(seed, p, num_generations, max_completion_length) for p in prompts])
        )
        bar = progress_bar(total, unit="answer", desc=progress, leave=False, disable=progress is None)
        for questions in self._split(prompts, max(1, self.max_num_seqs // num_generations)):
            for samples in torch.arange(num_generations).split(self.max_num_seqs):
                rows = (torch.tensor(questions)[:, None] * num_generations + samples).flatten()
                ids[rows], logprobs[rows], lengths[rows] = self._decode(
                    [prompts[q].token_ids for q in questions], len(samples), uniforms[rows], temperature, top_p
                )
                bar.update(len(rows))
        bar.close()
        ended = torch.isin(ids.gather(1, lengths[:, None] - 1).squeeze(1), self.end_tokens)
        longest = int(lengths.max())
        return Rollouts(
            prompts=prompts,
            num_generations=num_generations,
            completion_ids=ids[:, :longest].clone(),
            logprobs=logprobs[:, :longest].clone(),
            lengths=lengths,
            finish_reasons=["stop" if stop else "length" for stop in ended.tolist()],
            texts=self.tokenizer.batch_decode(
                [row[:n].tolist() for row, n in zip(ids, lengths.tolist(), strict=True)], skip_special_tokens=True
            ),
        )

    def sync(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the weights into this process's copy of the policy. Without a copy there is nothing to do."""
        for name, tensor in named_tensors if self.weights else ():
            if name in self.weights:
                self.weights[name].copy_(tensor)

    def close(self) -> None:
        """Do nothing: the engine holds no memory of its own."""

    def _split(self, prompts: Sequence[Prompt], at_once: int) -> Iterator[list[int]]:
        """Split questions into batches, the shortest first. Where padding would be remembered, there is none."""
        lengths = [len(prompt.token_ids) for prompt in prompts]
        ordered = sorted(range(len(prompts)), key=lengths.__getitem__)
        for _, group in groupby(ordered, key=lambda q: 0 if self.takes_padding else lengths[q]):
            questions = list(group)
            yield from (questions[start : start + at_once] for start in range(0, len(questions), at_once))

    def _check_decoding(self) -> None:
        """Decode a few tokens.

        Raises:
            ConfigError: the model keeps what it has read in another way than this engine can handle.
        """
        try:
            with torch.inference_mode():
                rows = min(2, self.max_num_seqs)
                self._decode([(0, 0)], rows, torch.zeros(rows, 2, dtype=torch.float64), 1.0, 1.0)
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            valid = (
                f"must be vllm, as {type(self.model).__name__} cannot be decoded with transformers' cache ({reason})"
            )
            raise ConfigError("sampler", "transformers", valid) from error

    def _decode(
        self, prompts: list[tuple[int, ...]], num_generations: int, uniforms: Tensor, temperature: float, top_p: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample one batch of N completions of at most T tokens.

        Args:
            prompts: token ids of the questions.
            num_generations: completions of each.
            uniforms: float64 [N, T], the random numbers that decide every choice.
            temperature, top_p: see `sample_tokens`.

        Returns:
            Token ids [N, T], log-probabilities [N, T] and lengths [N].
        """
        rows, steps = uniforms.shape
        ids, logprobs = torch.zeros(rows, steps, dtype=torch.long), torch.zeros(rows, steps)
        lengths = torch.full((rows,), steps)
        cache = DynamicCache(config=self.model.config)

        longest = max(map(len, prompts))
        prompt_ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])  # [Q, P], left-padded
        real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])  # [Q, P]
        padded = not real.all()
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)  # [Q, P]
        logits = self._forward(prompt_ids, real if padded else None, positions, cache).repeat_interleave(
            num_generations, dim=0
        )  # [N, V]
        cache.reorder_cache(torch.arange(len(prompts), device=self.model.device).repeat_interleave(num_generations))
        real = real.repeat_interleave(num_generations, dim=0)  # [N, P + step]
        positions = positions[:, -1:].repeat_interleave(num_generations, dim=0)  # [N, 1]

        row_of = torch.arange(rows)  # the completion that each row of the running batch belongs to
        alive = torch.ones(rows, dtype=torch.bool)
        for step in range(steps):
            tokens, chosen = sample_tokens(logits, uniforms[row_of, step], temperature, top_p)  # [n], [n]
            ids[row_of[alive], step] = tokens[alive]
            logprobs[row_of[alive], step] = chosen[alive]
            ending = alive & torch.isin(tokens, self.end_tokens)
            lengths[row_of[ending]] = step + 1
            alive = alive & ~ending
            if not alive.any() or step == steps - 1:
                break
            if alive.sum() < COMPACT_BELOW * len(alive):
                kept = alive.nonzero().squeeze(1)
                cache.reorder_cache(kept.to(self.model.device))
                tokens, real, positions, row_of, alive = (x[kept] for x in (tokens, real, positions, row_of, alive))
            positions = positions + 1
            if padded:
                real = torch.cat([real, real.new_ones(len(real), 1)], dim=1)
            logits = self._forward(tokens[:, None], real if padded else None, positions, cache)
        return ids, logprobs, lengths

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Return the logits [rows, V] after the last token of each row. The cache grows by ids.shape[1] tokens."""
        ids, mask, positions = (None if x is None else x.to(self.model.device) for x in (ids, mask, positions))
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, self.cache_name: cache}
        return self.model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1].cpu()


def draw_uniforms(seed: int, prompt: Prompt, num_generations: int, length: int) -> np.ndarray:
    """Draw the numbers in [0, 1) that decide every token of a question's completions: float64 [G, length]."""
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, prompt.problem_id)))
    return generator.random((num_generations, length))


def sample_tokens(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Sample one token a row by inverting its distribution function.

    Args:
        logits: [n, V].
        uniforms: float64 [n] in [0, 1).
        temperature: divides the logits; 0 takes the most likely token.
        top_p: keeps the smallest set of most likely tokens with at least this mass. 1 keeps all.

    Returns:
        Token ids, int64 [n], and their log-probabilities under the distribution that was sampled from, float32 [n].
    """
    logits = logits.float()
    if temperature == 0:
        logprobs = logits.log_softmax(dim=-1)
        tokens = logits.argmax(dim=-1)
        return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1)
    logprobs = (logits / temperature).log_softmax(dim=-1)  # [n, V]
    if top_p < 1:
        ordered, order = logprobs.sort(dim=-1, descending=True)
        mass_before = ordered.exp().cumsum(dim=-1) - ordered.exp()
        dropped = torch.zeros_like(logprobs, dtype=torch.bool).scatter_(1, order, mass_before >= top_p)
        logprobs = logprobs.masked_fill(dropped, -torch.inf).log_softmax(dim=-1)
    cumulative = logprobs.double().exp().cumsum(dim=-1)  # [n, V]
    targets = uniforms[:, None] * cumulative[:, -1:]  # rounding may leave the last value beside 1: scale to it
    tokens = torch.searchsorted(cumulative, targets, right=True).clamp(max=logits.shape[1] - 1)  # [n, 1]
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)
