"""Packs completions with their prompts into rows of tokens, and rows into micro-batches."""

from __future__ import annotations

import math
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


class Pack(NamedTuple):
    """Completions of one question that share the pass over their prompt, or one completion.

    Attributes:
        longest: tokens of the longest of them with its prompt.
        rows: the completions.
        work: tokens that pass through the model for them.
    """

    longest: int
    rows: list[int]
    work: int


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
    model: PreTrainedModel, rollouts: Rollouts, rows: Sequence[int], max_tokens: int, *, processes: int = 1
) -> list[list[list[int]]]:
    """Split completions into micro-batches of packs, the longest first.

    Each micro-batch has at most max_tokens tokens. A completion counts with its prompt, and as long as the longest of
    the micro-batch unless flash attention makes padding unnecessary. Shared prompts count for each completion, too,
    though they are computed once.

    Several processes take turns: each computes one micro-batch of as many. These have about equally many tokens.

    Raises:
        ConfigError: one completion with its prompt is longer than max_tokens.
    """
    parts = deal_packs(model, rollouts, rows, max_tokens, processes)
    return [[pack.rows for pack in part] for part in parts]


def measure_balance(
    model: PreTrainedModel, rollouts: Rollouts, rows: Sequence[int], max_tokens: int, processes: int
) -> float:
    """Return how even the processes' work on some completions is; 1 is best.

    In each turn all wait for the process with most tokens: the sum of those tokens, over those of the mean process.

    Args:
        model, rollouts, rows, max_tokens, processes: as for `split_into_microbatches`.
    """
    parts = deal_packs(model, rollouts, rows, max_tokens, processes)
    return sum(works_of_turns(parts, processes)) * processes / sum(map(count_work, parts)) if parts else 1.0


def deal_packs(
    model: PreTrainedModel, rollouts: Rollouts, rows: Sequence[int], max_tokens: int, processes: int
) -> list[list[Pack]]:
    """Return the micro-batches of `split_into_microbatches`."""
    packs = sort_packs(model, rollouts, rows, max_tokens)
    if packs and packs[0].longest > max_tokens:
        raise ConfigError(
            "trainer.memory.max_tokens_per_microbatch", max_tokens, f"must be at least {packs[0].longest}"
        )
    parts = fill_microbatches(packs, max_tokens, is_flat(model))
    if processes == 1 or not parts:
        return parts
    return share_evenly(model, rollouts, rows, max_tokens, processes, parts)


def fill_microbatches(
    packs: Sequence[Pack], max_tokens: int, flat: bool, most_work: float = math.inf
) -> list[list[Pack]]:
    """Fill micro-batches one after the other.

    Args:
        packs: the longest first.
        max_tokens: as for `split_into_microbatches`.
        flat: whether padding is unnecessary.
        most_work: most tokens that pass through the model for a micro-batch, unless it is one pack.
    """
    parts, batch, tokens, longest, work = [], [], 0, 0, 0
    for pack in packs:
        more = len(pack.rows) * (pack.longest if flat else longest)
        if batch and (tokens + more > max_tokens or work + pack.work > most_work):
            parts.append(batch)
            batch, tokens, work = [], 0, 0
        if not batch:
            longest = pack.longest
        batch.append(pack)
        tokens += len(pack.rows) * (pack.longest if flat else longest)
        work += pack.work
    return [*parts, batch] if batch else parts


def share_evenly(
    model: PreTrainedModel,
    rollouts: Rollouts,
    rows: Sequence[int],
    max_tokens: int,
    processes: int,
    parts: list[list[Pack]],
) -> list[list[Pack]]:
    """Split completions anew, so that the micro-batches of a turn have about equally many tokens.

    Smaller packs are easier to share evenly, but compute their prompt more often, and so does one more turn: the best
    of a few sizes is taken.

    Args:
        model, rollouts, rows, max_tokens, processes: as for `split_into_microbatches`.
        parts: the micro-batches of a process that is alone.
    """
    turns, flat = -(-len(parts) // processes), is_flat(model)
    total = sum(map(count_work, parts))
    found = [parts]
    for most in (turns * processes, (turns + 1) * processes):
        for limit in {max_tokens, total // most, total // most // 2, total // most // 4}:
            packs = sort_packs(model, rollouts, rows, max(1, limit))
            low, high = total // most, 2 * total + 1
            while low < high:  # the least bound on the work of a micro-batch that needs no more of them
                middle = (low + high) // 2
                if len(fill_microbatches(packs, max_tokens, flat, middle)) <= most:
                    high = middle
                else:
                    low = middle + 1
            found.append(fill_microbatches(packs, max_tokens, flat, low))
    dealt = [sorted(each, key=count_work, reverse=True) for each in found]
    return min(dealt, key=lambda each: sum(works_of_turns(each, processes)))


def count_work(part: Sequence[Pack]) -> int:
    """Return the tokens that pass through the model for a micro-batch."""
    return sum(pack.work for pack in part)


def works_of_turns(parts: Sequence[Sequence[Pack]], processes: int) -> list[int]:
    """Return the tokens of the largest micro-batch of each turn, for which the other processes wait."""
    works = list(map(count_work, parts))
    return [max(works[start : start + processes]) for start in range(0, len(works), processes)]


def sort_packs(model: PreTrainedModel, rollouts: Rollouts, rows: Sequence[int], max_tokens: int) -> list[Pack]:
    """Return the packs of `pack_completions`, the longest first."""
    shares, lengths, packs = shares_prompts(model), rollouts.lengths.tolist(), []
    for longest, members in pack_completions(model, rollouts, rows, max_tokens):
        prompt = len(rollouts.prompts[members[0] // rollouts.num_generations].token_ids)
        work = prompt * (1 if shares else len(members)) + sum(lengths[row] for row in members)
        packs.append(Pack(longest, members, work))
    return sorted(packs, key=lambda pack: (-pack.longest, pack.rows))


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
