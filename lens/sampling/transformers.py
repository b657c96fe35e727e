"""The embedded rollout engine. It samples with the trainer's own module, on any machine that torch runs on."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lens.distributed.collectives import world_size
from lens.distributed.room import make_room
from lens.errors import ConfigError
from lens.problems.prompts import Prompt
from lens.progress import progress_bar
from lens.sampling.answer_cache import AnswerCache, decoding_answers
from lens.sampling.choice import draw_uniforms, sample_tokens
from lens.sampling.memory import mixes_by_attention
from lens.sampling.rollouts import Rollouts, end_token_ids

COMPACT_BELOW = 0.9  # finished rows leave the batch once a smaller share of it is still unfinished
READ_AT_ONCE = 512  # tokens of prompts that pass through the model together, unless one prompt has more
REFUSALS = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)


class TransformersSampler:
    """Samples in batches with a key-value cache. Each prompt is computed once for all of its completions.

    If attention alone mixes the model's tokens and its layers leave keys and scores to transformers' interface, prompts
    and completions are remembered in an `AnswerCache`; otherwise in transformers' own cache.

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
        self.model = copy.deepcopy(model).requires_grad_(False) if shared else model
        if shared:
            make_room(self.model, device)  # a model that is yet to be read is copied without its numbers
        self.weights = dict(self.model.named_parameters()) if shared else {}
        self.tokenizer, self.max_num_seqs = tokenizer, max_num_seqs
        self.end_tokens = torch.empty(0, dtype=torch.long)  # nothing ends what is only a trial
        self.takes_padding = mixes_by_attention(model)
        names = inspect.signature(model.forward).parameters
        self.cache_name = "cache_params" if "cache_params" in names else "past_key_values"
        self._check_decoding()
        self.end_tokens = torch.tensor(end_token_ids(model, tokenizer))

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
        """Try how the model can be decoded: with an `AnswerCache`, or with transformers' own cache.

        Raises:
            ConfigError: the model keeps what it has read in another way than this engine can handle.
        """
        prompts = [(0,), (0, 0)][: self.max_num_seqs] if self.takes_padding else [(0, 0)]
        for apart in (True, False) if self.takes_padding else (False,):
            self.keeps_apart = apart
            try:
                with torch.inference_mode():
                    self._decode(prompts, 1, torch.zeros(len(prompts), 3, dtype=torch.float64), 1.0, 1.0)
                return
            except REFUSALS as error:
                refusal = error
        reason = f"{type(refusal).__name__}: {' '.join(str(refusal).split())}"
        valid = f"must be vllm, as {type(self.model).__name__} cannot be decoded with transformers' cache ({reason})"
        raise ConfigError("sampler", "transformers", valid) from refusal

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
        cache, logits = self._read(prompts, num_generations)  # [N, V]
        positions = torch.tensor([[len(prompt)] for prompt in prompts]).repeat_interleave(num_generations, dim=0)
        longest = int(positions.max())
        real = (torch.arange(longest + steps) >= longest - positions).long()  # [N, P + T], left-padded
        padded = not real.all()

        row_of = torch.arange(rows)  # the completion that each row of the running batch belongs to
        alive = torch.ones(rows, dtype=torch.bool)
        with decoding_answers(self.model) if self.keeps_apart else nullcontext():
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
                mask = real[:, : longest + step + 1] if padded else None
                logits = self._forward(tokens[:, None], mask, positions + step, cache)
        return ids, logprobs, lengths

    def _read(self, prompts: list[tuple[int, ...]], num_generations: int) -> tuple[Cache, Tensor]:
        """Compute each prompt once.

        Returns:
            What the model remembers of them for num_generations answers each, and logits [N, V] of the first tokens.
        """
        caches, logits = [], []
        for part in self._parts(prompts):
            longest = max(map(len, part))
            ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in part])  # [q, p], left-padded
            real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in part])  # [q, p]
            positions = (real.cumsum(dim=1) - 1).clamp(min=0)  # [q, p]
            caches.append(DynamicCache(config=self.model.config))
            logits.append(self._forward(ids, None if real.all() else real, positions, caches[-1]))
        first = torch.cat(logits).repeat_interleave(num_generations, dim=0)
        if self.keeps_apart:
            return AnswerCache(caches, max(map(len, prompts)), num_generations), first
        rows = torch.arange(len(prompts), device=self.model.device).repeat_interleave(num_generations)
        caches[0].reorder_cache(rows)
        return caches[0], first

    def _parts(self, prompts: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Split prompts, the shortest first, into parts of at most READ_AT_ONCE tokens each, padding included."""
        part: list[tuple[int, ...]] = []
        for prompt in prompts:
            if self.keeps_apart and part and len(prompt) * (len(part) + 1) > READ_AT_ONCE:
                yield part
                part = []
            part.append(prompt)
        yield part

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache) -> Tensor:
        """Return the logits [rows, V] after the last token of each row. The cache grows by ids.shape[1] tokens."""
        ids, mask, positions = (None if x is None else x.to(self.model.device) for x in (ids, mask, positions))
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, self.cache_name: cache}
        if isinstance(cache, AnswerCache):
            inputs["answers"] = cache
        return self.model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1].cpu()
