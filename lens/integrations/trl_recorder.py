"""Records the log-probability of each token that a transformers model samples, while it samples.

`generate` calls the model once a token. The output of a call says how likely the next token was, and the next call's
input says which one was drawn. A hook that sees both needs no pass of its own, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Recorder:
    """The log-probabilities of the tokens of one call of `generate`, and the entropies there if asked for.

    They are those of logits / temperature, before any cut of top-k, top-p or a penalty, as a pass over the whole
    answers gives them. Logits [B, V] are kept for one token at a time.

    Args:
        temperature: what the logits are divided by.
        with_entropies: whether to record the entropies too.
    """

    def __init__(self, temperature: float, with_entropies: bool) -> None:
        self.temperature, self.with_entropies = temperature, with_entropies
        self.inputs: list[Tensor] = []  # the prompts [B, P], then a column [B, 1] for each token
        self.logits: Tensor | None = None  # [B, V], for the token after the inputs
        self.columns: list[tuple[Tensor, ...]] = []  # of each token: log-probabilities [B, 1], entropies [B, 1]
        self.calls, self.clear = 0, True

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Record what a model's `generate` does inside."""
        self.calls += 1
        hook = model.register_forward_hook(self._see, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def read(self, prompt_ids: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the log-probabilities of answers, and the entropies or None.

        Args:
            prompt_ids: [B, P], with the padding that the model saw.
            ids, mask: [B, T], the tokens of the answers, and bool, which of them to compare.

        Returns:
            float32 [B, T] each, all NaN if the recorded tokens are not these, or not those of a single call.
        """
        unknown = torch.full(ids.shape, torch.nan, device=ids.device)
        unknown = (unknown, unknown if self.with_entropies else None)
        rows, width = ids.shape
        if self.calls != 1 or not self.clear or self.logits is None or self.inputs[0].shape != prompt_ids.shape:
            return unknown
        columns, seen = self.columns, self.inputs[1:]
        if len(columns) < width:  # no call has the last token as its input
            last = ids[:, len(columns), None]
            columns, seen = [*columns, self._rate(last)], [*seen, last]
        known = min(len(columns), width)
        same = (torch.cat(seen[:known], dim=1) == ids[:, :known]) | ~mask[:, :known]
        if mask[:, known:].any() or not same.all() or not torch.equal(self.inputs[0], prompt_ids):
            return unknown
        padding = ids.new_zeros((rows, width - known), dtype=torch.float32)
        tables = [torch.cat([*of_tokens[:known], padding], dim=1) for of_tokens in zip(*columns, strict=True)]
        return tables[0], tables[1] if self.with_entropies else None

    def _see(self, model: nn.Module, arguments: tuple, given: dict[str, Any], output: Any) -> None:
        """Take the token that was drawn since the last call of the model, and the logits of the next one."""
        ids = given.get("input_ids")
        self.clear = self.clear and ids is not None and self._follows(ids)
        if not self.clear:
            return
        if self.logits is not None:
            ids = ids[:, -1:]
            self.columns.append(self._rate(ids))
        self.inputs.append(ids)
        logits = output.logits
        self.logits = logits[:, -1].clone() if logits.shape[1] > 1 else logits[:, -1]

    def _follows(self, ids: Tensor) -> bool:
        """Return whether the input has one token more than the last, alone if a cache knows the others.

        It has not where `generate` tries several answers, guesses tokens ahead, or reads the prompts in pieces.
        """
        if self.logits is None:
            return True
        so_far = self.inputs[0].shape[1] + len(self.columns)
        return len(ids) == len(self.logits) and ids.shape[1] in (1, so_far + 1)

    def _rate(self, token: Tensor) -> tuple[Tensor, ...]:
        """Return the log-probabilities [B, 1] of a token of each answer, and the entropies if asked for."""
        logits = self.logits.float()
        table = (logits if self.temperature == 1 else logits / self.temperature).log_softmax(dim=-1)
        picked = table.gather(1, token)
        return (picked, torch.special.entr(table.exp()).sum(dim=1, keepdim=True)) if self.with_entropies else (picked,)
