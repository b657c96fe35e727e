"""Packs completions with their prompts into rows of tokens, and rows into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lens.errors import ConfigError
from lens.models.layers import find_decoder
from lens.models.prompt_sharing import Sharing
from lens.models.shared_prompts import FLEX_SHARED_PROMPTS, SHARED_PROMPTS
from lens.sampling.memory import mixes_by_attention
from lens.sampling.rollouts import Rollouts


class Layout(NamedTuple):
    """Packs of completions, with n sampled tokens in all, as the model reads them.

    A flat layout is one row without padding (B = 1). Otherwise there are B rows of at most L tokens, right-padded.

    Attributes:
        ids: int64 [B, L], token ids: each prompt is followed by its completions.
        positions: int64 [B, L], position ids. Those of every completion continue the prompt's. In a flat row they tell
            flash attention where sequences begin.
        predicting: two int64 [n], row and place of the token before each sampled one; its output predicts that one.
        targets: int64 [n], the sampled tokens.
        sharing: which completions share which prompt. None: none do.
    """

    ids: Tensor
    positions: Tensor
    predicting: tuple[Tensor, Tensor]
    targets: Tensor
    sharing: Sharing | None

    def to(self, device: torch.device) -> Layout:
        """Return a copy on a device."""
        predicting = tuple(index.to(device) for index in self.predicting)
        sharing = None if self.sharing is None else self.sharing.to(device)
        return Layout(self.ids.to(device), self.positions.to(device), predicting, self.targets.to(device), sharing)

    def for_attention(self) -> dict[str, Any]:
        """Return the arguments of the model's forward that choose causal attention, or attention with shared prompts.

        Shared prompts need no mask. Without one transformers would make a mask of T x T, so it gets a tiny one of four
        dimensions, which it passes on unchanged.
        """
        if self.sharing is None:
            return {"attention_mask": None}
        none = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=self.ids.device)
        return {"attention_mask": none, "sharing": self.sharing}


def lay_out(rollouts: Rollouts, packs: Sequence[Sequence[int]], *, flat: bool = False, sharing: bool = False) -> Layout:
    """Lay out packs of completions as the model reads them: each prompt, then its completions one after the other.

    Args:
        rollouts: the completions.
        packs: rows of the completions to take, in lists of one question each. Without sharing, each list has one row.
        flat: put all packs into one row; otherwise each pack has its own.
        sharing: the completions of a pack share the pass over their prompt. Implies ``flat``.
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
    """Return whether sequences stand in one row without padding. Flash attention can tell them apart by position."""
    return "flash" in model.config._attn_implementation and mixes_by_attention(model)


def shares_prompts(model: PreTrainedModel) -> bool:
    """Return whether completions of a question can share the pass over their prompt."""
    return model.config._attn_implementation in (SHARED_PROMPTS, FLEX_SHARED_PROMPTS)


@torch.no_grad()
def share_prompts(model: PreTrainedModel) -> bool:
    """Let completions of a question share the pass over their prompt, if the model can.

    It can if attention alone mixes its tokens, and if every layer tells its attention who shares a prompt. A pass over
    three tokens shows that.

    Returns:
        Whether they share it now.
    """
    before = model.config._attn_implementation
    if before != "sdpa" or not mixes_by_attention(model):
        return False
    model.set_attn_implementation(SHARED_PROMPTS)
    nothing = torch.zeros(1, 3, dtype=torch.long, device=model.device)
    sharing = Sharing.of([1], [[1, 1]]).to(model.device)
    layout = Layout(nothing, torch.tensor([[0, 1, 1]], device=model.device), (), nothing, sharing)
    with suppress(TypeError):  # a layer knows no such argument
        find_decoder(model)(
            input_ids=layout.ids, position_ids=layout.positions, use_cache=False, **layout.for_attention()
        )
    if sharing.uses < model.config.get_text_config(decoder=True).num_hidden_layers:
        model.set_attn_implementation(before)
    return shares_prompts(model)


def split_into_microbatches(
    model: PreTrainedModel, rollouts: Rollouts, rows: Sequence[int], max_tokens: int
) -> Iterator[list[list[int]]]:
    """Split completions into micro-batches of packs, the longest first.

    Each micro-batch has at most max_tokens tokens. A completion counts with its prompt, and as long as the longest of
    the micro-batch unless flash attention makes padding unnecessary. Shared prompts count for each completion, too,
    though they are computed once.

    Raises:
        ConfigError: one completion with its prompt is longer than max_tokens.
    """
    packs = sorted(pack_completions(model, rollouts, rows, max_tokens), key=lambda pack: (-pack[0], pack[1]))
    if packs and packs[0][0] > max_tokens:
        raise ConfigError("trainer.memory.max_tokens_per_microbatch", max_tokens, f"must be at least {packs[0][0]}")
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
    """Group the completions of each question into packs that share a prompt pass, the longest completions first.

    Without sharing a pack is one completion. With sharing it has as many as max_tokens allows.

    Yields:
        The tokens of the longest completion of a pack with its prompt, and the pack's rows.
    """
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
