"""Parts and faults that tests break runs with."""

from __future__ import annotations

import functools
import importlib
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lens.distributed.processes import rank
from lens.models.loading import load_model
from lens.objectives import grpo_advantages
from lens.sampling.transformers import TransformersSampler


class WaitingSampler(TransformersSampler):
    """The embedded engine; after some calls it waits as long as a file exists, and tells of it by another."""

    def __init__(self, *parts: Any, while_exists: str, after_calls: int = 0, **options: Any):
        super().__init__(*parts, **options)
        self.file, self.calls_left = Path(while_exists), after_calls

    def sample(self, *arguments: Any, **options: Any) -> Any:
        self.calls_left -= 1
        while self.calls_left < 0 and self.file.exists():
            self.file.with_suffix(".reached").touch()
            time.sleep(0.01)
        return super().sample(*arguments, **options)


class LimitedSampler(TransformersSampler):
    """The embedded engine; from its third call on, one process cannot write large files, as long as a file says so.

    The file holds the process's rank and the bytes that a file may have.
    """

    def __init__(self, *parts: Any, limits: str, **options: Any):
        super().__init__(*parts, **options)
        self.file, self.calls = Path(limits), 0

    def sample(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls >= 3 and self.file.exists():
            process, size = map(int, self.file.read_text().split())
            if rank() == process:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return super().sample(*arguments, **options)


class FirstPolicySampler(TransformersSampler):
    """The embedded engine with the weights of a folder in float32 from first to last, whatever is trained."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, folder: str, **options: Any):
        super().__init__(load_model(folder)[0], tokenizer, **options)


def infinite_advantages(correct, confidence, *, lengths=None, valid=None, **choices) -> torch.Tensor:
    """GRPO's advantages, but for the first answer's."""
    advantages = grpo_advantages(correct, valid=valid, **choices)
    advantages[0, 0] = torch.inf
    return advantages


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Meanwhile what this process writes to a file beyond so many bytes fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def kill_at(point: str) -> None:
    """Have this process and its workers killed at the nth call of a function: "module:qualified.name:nth"."""
    module, name, nth = point.split(":")
    *owners, name = name.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function, calls = getattr(owner, name), []

    @functools.wraps(function)
    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == int(nth):
            os.killpg(os.getpgrp(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, name, counted)
