"""Exchanges values between the processes that train one model, with torch.distributed.

Each process holds a shard of every weight. It samples and grades a share of the questions, and computes the gradient of
a share of the micro-batches. Everything small (rollouts, verdicts, log-probabilities) is gathered. So every process
knows the whole round and makes the same decisions, and the code in between reads like that of one process.

Every process must call the functions that exchange values, and in the same order. With one process nothing is
exchanged.
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
from lens.errors import FailedElsewhere, ProcessLost, StopRequested

T = TypeVar("T")
OF_CONNECTIONS = ("gloo/transport/", "ncclRemoteError")  # torch raises a RuntimeError with one of them in its text


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes that were launched together. None outlives the process that launched it.

    Raises:
        ProcessLost: another process ended without a word, or has been silent for too long.
    """
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
        barrier()  # no process leaves while another still needs it
    except RuntimeError as error:
        if not isinstance(error, dist.DistNetworkError) and not any(sign in str(error) for sign in OF_CONNECTIONS):
            raise
        raise ProcessLost(f"another process of the run is gone ({' '.join(str(error).split())})") from error
    finally:
        if dist.is_initialized():  # an engine that ended may have destroyed it
            dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this is process 0, which alone writes files and logs."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def gather_objects(value: T) -> list[T]:
    """Return every process's value, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def is_true_anywhere(flag: bool) -> bool:
    """Return whether the flag is true in at least one process.

    The flag travels as a byte on the CPU: this is asked before each micro-batch, and must neither pickle nor wait for
    a GPU.
    """
    if world_size() == 1:
        return flag
    found = torch.tensor([flag], dtype=torch.uint8)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())


def stop_together() -> None:
    """Stop all processes at this place if SIGTERM has come to any of them. Does nothing with one process.

    Raises:
        StopRequested: SIGTERM has come to some process.
    """
    if world_size() > 1 and is_true_anywhere(TERMINATED.is_set()):
        raise StopRequested


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_tensor(values: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded over the processes."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def local_part(values: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds."""
    return values.to_local() if isinstance(values, DTensor) else values


def take_turns(items: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """Yield this process's share of a list, and with each item whether it counts.

    All processes get equally many items, since each pass through a sharded model needs every process. If the list does
    not divide evenly, some processes get its last item once more, and there it does not count.

    Raises:
        StopRequested: SIGTERM has come to some process, before an item.
    """
    for start in range(0, len(items), world_size()):
        stop_together()
        place = start + rank()
        yield items[min(place, len(items) - 1)], place < len(items)


@contextmanager
def failing_together() -> Iterator[None]:
    """Run a block in every process, and wait until each has ended it. If it raises in one, it raises in all.

    The block must wait for no other process. Each of those in which it raised gets its own exception.

    Raises:
        FailedElsewhere: the block raised in another process; the message says in which, and why.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # not KeyboardInterrupt, which must end the process at once
        failure = error
    reasons = gather_objects(None if failure is None else str(failure) or type(failure).__name__)
    if failure is not None:
        raise failure
    for number, reason in enumerate(reasons):
        if reason is not None:
            raise FailedElsewhere(f"process {number}: {reason}")


Interruptible = Callable[[], AbstractContextManager[None]]  # goes around work that waits for no other process


def gather_from_each(work: Callable[[], T], interruptible: Interruptible) -> list[T]:
    """Run ``work`` in every process, and return all results in the order of the ranks.

    Args:
        work: this process's share of the work; it waits for no other process.
        interruptible: lets SIGTERM interrupt ``work``. Used only with several processes.

    Raises:
        StopRequested: SIGTERM interrupted one of them.
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
