"""Several processes that train one model with torch.distributed and FSDP2: who does what, and how they agree.

Each holds a shard of every weight, samples and grades a share of the questions, and computes the gradient of a share of
the micro-batches. What is small (rollouts, verdicts, log-probabilities) is gathered, so that all between is the program
of one process: each knows the whole round, and decides alike. With one process nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lens.distributed.processes import TERMINATED, end_with_parent, is_one_of_several, rank
from lens.errors import StopRequested

T = TypeVar("T")


@contextmanager
def process_group() -> Iterator[None]:
    """Meanwhile the processes that were launched together know of each other; none outlives what has launched it."""
    if not is_one_of_several():
        yield
        return
    end_with_parent()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield
        barrier()  # none leaves while another still needs it
    finally:
        if dist.is_initialized():  # an engine that ended may have taken it along
            dist.destroy_process_group()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes and speaks for all."""
    return rank() == 0


def barrier() -> None:
    """Wait for the others."""
    if dist.is_initialized():
        dist.barrier()


def gather_objects(value: T) -> list[T]:
    """Every process's value, in the order of their numbers."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def is_true_anywhere(flag: bool) -> bool:
    """Whether it is true of some process."""
    return any(gather_objects(flag))


def stop_together() -> None:
    """Where SIGTERM may have come in the middle of what processes do together: a place where all can leave it.

    Raises:
        StopRequested: it has come to some process.
    """
    if world_size() > 1 and is_true_anywhere(TERMINATED.is_set()):
        raise StopRequested


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_tensor(values: Tensor) -> Tensor:
    """A tensor of which every process may hold a shard, in full; all have to ask for it."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def local_part(values: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return values.to_local() if isinstance(values, DTensor) else values


def take_turns(items: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """This process's share of a list, and whether it counts.

    All processes get equally many, since each pass through a sharded model needs every one of them: where the list does
    not suffice, its last item again, which does not count.

    Raises:
        StopRequested: SIGTERM has come to some process, before an item.
    """
    for start in range(0, len(items), world_size()):
        stop_together()
        place = start + rank()
        yield items[min(place, len(items) - 1)], place < len(items)


Interruptible = Callable[[], AbstractContextManager[None]]  # around work that waits for no other process


def gather_from_each(work: Callable[[], T], interruptible: Interruptible) -> list[T]:
    """What every process makes of its share, in the order of their numbers.

    Raises:
        StopRequested: one of them was broken off.
    """
    try:
        with interruptible() if world_size() > 1 else nullcontext():
            part = work()
    except StopRequested as stop:
        part = stop
    parts = gather_objects(part)
    if any(isinstance(part, StopRequested) for part in parts):
        raise StopRequested
    return parts
