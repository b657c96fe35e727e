"""Packs completions with their prompts into rows of tokens, and rows into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lens.errors import ConfigError
from lens.models.shared_prompts import SHARED_PROMPTS, Sharing
from lens.sampling.rollouts import Rollouts


class Layout(NamedTuple):
    """Packs as the model reads them: flat, all in one row without padding, or B rows of at most L tokens, right-padded.

    Attributes:
        ids: int64 [B, L], a prompt and after it its completions.
        positions: int64 [B, L]; each completion goes on from the prompt's end. They tell flash attention where in a
            flat row sequences begin.
        predicting: int64 [n] twice, row and place of the token before each sampled one.
        targets: int64 [n], the sampled tokens.
        sharing: who shares which prompt, where the attention knows of it.
    """

    ids: Tensor
    positions: Tensor
    predicting: tuple[Tensor, Tensor]
    targets: Tensor
    sharing: Sharing | None

    def to(self, device: torch.device) -> Layout:
        """The same on a device."""
        predicting = tuple(index.to(device) for index in self.predicting)
        sharing = None if self.sharing is None else self.sharing.to(device)
        return Layout(self.ids.to(device), self.positions.to(device), predicting, self.targets.to(device), sharing)

    def for_attention(self) -> dict[str, Any]:
        """Arguments of the model's forward: plain causal attention, or that of shared prompts, which needs no mask.

        transformers hands a mask of four dimensions on as it is, and would make one of T x T without.
        """
        if self.sharing is None:
            return {"attention_mask": None}
        none = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=self.ids.device)
        return {"attention_mask": none, "sharing": self.sharing}


def lay_out(rollouts: Rollouts, packs: Sequence[Sequence[int]], *, flat: bool = False, sharing: bool = False) -> Layout:
    """A prompt's completions one after the other: each pack a row, or flat, all in one row, as sharing needs it.

    Without sharing a pack is one completion.
    """
    flat = flat or sharing
    prompts = [rollouts.prompts[pack[0] // rollouts.num_generations].token_ids for pack in packs]
    lengths = [rollouts.lengths[list(pack)].tolist() for pack in packs]
    sizes = [len(prompt) + sum(each) for prompt, each in zip(prompts, lengths, strict=True)]
    shape = (1, sum(sizes)) if flat else (len(packs), max(sizes))
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    places, first = [], 0
    for number, (pack, prompt, each, size) in enumerate(zip(packs, prompts, lengths, sizes, strict=True)):
        row, start = (0, first) if flat else (number, 0)
        begin = start + len(prompt)
        ids[row, start:begin], positions[row, start:begin] = torch.tensor(prompt), torch.arange(len(prompt))
        last = begin - 1  # of the prompt
        for index, length in zip(pack, each, strict=True):
            ids[row, begin : begin + length] = rollouts.completion_ids[index, :length]
            positions[row, begin : begin + length] = torch.arange(len(prompt), len(prompt) + length)
            before = torch.arange(begin - 1, begin + length - 1)
            before[0] = last
            places.append((torch.full((length,), row), before))
            begin += length
        first += size
    targets = torch.cat([rollouts.completion_ids[row, : rollouts.lengths[row]] for pack in packs for row in pack])
    predicting = tuple(torch.cat(each) for each in zip(*places, strict=True))
    shared = Sharing.of([len(prompt) for prompt in prompts], lengths) if sharing else None
    return Layout(ids, positions, predicting, targets, shared)


def is_flat(model: PreTrainedModel) -> bool:
    """Whether sequences stand in one row without padding: flash attention tells them apart by their positions."""
    return "flash" in model.config._attn_implementation


def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether completions of a question can share the pass over their prompt."""
    return model.config._attn_implementation == SHARED_PROMPTS


def split_into_microbatches(
    model: PreTrainedModel, rollouts: Rollouts, rows: Sequence[int], max_tokens: int
) -> Iterator[list[list[int]]]:
    """Split completions into micro-batches of packs; the longest come first.

    Each has at most max_tokens: completions with their prompts, all as long as the longest of the micro-batch, but
    where flash attention needs no padding. What prompts that are shared save comes off that.

    Raises:
        ConfigError: one completion with its prompt is longer than max_tokens.
    """
    packs = sorted(pack_completions(model, rollouts, rows, max_tokens), key=lambda pack: (-pack[0], pack[1]))
    if packs and packs[0][0] > max_tokens:
        raise ConfigError("trainer.memory.max_tokens_per_microbatch", max_tokens, f"at least {packs[0][0]}")
    batch, tokens, flat, longest = [], 0, is_flat(model), 0
    for size, pack in packs:
        if batch and tokens + len(pack) * (size if flat else longest) > max_tokens:
            yield batch
            batch, tokens = [], 0
        if not batch:
            longest = size
        batch.append(pack)
        tokens += len(pack) * (size if flat else longest)
    if batch:
        yield batch


def pack_completions(
    model: PreTrainedModel, rollouts: Rollouts, rows: Sequence[int], max_tokens: int
) -> Iterator[tuple[int, list[int]]]:
    """A question's completions, the longest first, as many together as may share; and the tokens of the longest."""
    shares, lengths, by_question = shares_prompts(model), rollouts.lengths.tolist(), {}
    for row in rows:
        by_question.setdefault(row // rollouts.num_generations, []).append(row)
    for question, members in by_question.items():
        prompt = len(rollouts.prompts[question].token_ids)
        members = sorted(members, key=lambda row: (-lengths[row], row))
        while members:
            longest = prompt + lengths[members[0]]
            count = max(1, max_tokens // longest) if shares else 1
            yield longest, members[:count]
            members = members[count:]
