"""Says which completions of a row of tokens share which prompt, for the attentions that compute with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lens.models.group_attention import Group, Scratch


@dataclass
class Sharing:
    """Maps the T tokens of a row to a batch of N completions with their prompts, of at most S tokens each.

    Attributes:
        places: int64 [N, S], position in the row of the token at each place of the batch; 0 beyond a completion's end,
            where the value does not matter.
        home: int64 [T], the place (n * S + s) that each token's output is taken from. For a prompt it is that of its
            first completion.
        prompts: for each pack: position in the row of the prompt's first token, length of the prompt, number n of its
            first completion, and number of its completions.
        uses: how often an attention layer has used it.
        scratch: memory that the layers reuse one after the other.
        block_masks: FlexAttention's mask by the size of the window; the layers share it.
    """

    places: Tensor
    home: Tensor
    prompts: list[tuple[int, int, int, int]]
    uses: int = field(default=0, compare=False)
    scratch: Scratch = field(default_factory=Scratch, compare=False)
    block_masks: dict[int | None, BlockMask] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, prompts: Sequence[int], completions: Sequence[Sequence[int]]) -> Sharing:
        """Make the map for packs in a row.

        Args:
            prompts: number of tokens of each pack's prompt.
            completions: numbers of tokens of each pack's completions, which follow the prompt.
        """
        longest = max(prompt + max(lengths) for prompt, lengths in zip(prompts, completions, strict=True))
        places = torch.zeros(sum(map(len, completions)), longest, dtype=torch.long)
        home = torch.empty(sum(prompts) + sum(map(sum, completions)), dtype=torch.long)
        start, row, found = 0, 0, []
        for prompt, lengths in zip(prompts, completions, strict=True):
            found.append((start, prompt, row, len(lengths)))
            places[row : row + len(lengths), :prompt] = torch.arange(start, start + prompt)
            home[start : start + prompt] = row * longest + torch.arange(prompt)
            start += prompt
            for length in lengths:
                places[row, prompt : prompt + length] = torch.arange(start, start + length)
                home[start : start + length] = row * longest + torch.arange(prompt, prompt + length)
                start, row = start + length, row + 1
        return cls(places, home, found)

    def to(self, device: torch.device) -> Sharing:
        """Return a copy on a device."""
        return Sharing(self.places.to(device), self.home.to(device), self.prompts)

    @cached_property
    def groups(self) -> list[Group]:
        """The groups for `GroupAttention`: one for each prompt, and one for its completions."""
        size, found = self.places.shape[1], []
        ends = [start for start, *_ in self.prompts[1:]] + [len(self.home)]
        for (start, prompt, first, count), end in zip(self.prompts, ends, strict=True):
            found.append(Group(start, 0, torch.arange(start, start + prompt)[None]))
            own = self.home[start + prompt : end]  # of the completions' tokens
            longest = int((own % size).max()) + 1 - prompt
            held = (own // size - first) * longest + own % size - prompt
            tokens = self.places[first : first + count, : prompt + longest]
            found.append(Group(start + prompt, prompt, tokens, held if len(held) < count * longest else None))
        return found
