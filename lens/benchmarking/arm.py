"""Arms in processes of their own, so that the memory of each is its own, and what one imports the other does not."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from lens.benchmarking.measuring import Row, release_memory
from lens.benchmarking.workload import Workload
from lens.errors import ConfigError

Turn = Callable[[], int]  # waits for its turn, and returns the number of the round
Report = Callable[[Row], None]


class Arm:
    """The parent's end of a process that takes a step when it is asked to.

    Args:
        name: the arm's.
        target: ``target(turn, report, *arguments)`` in the process: one `report` when it is ready, and one a turn.
        arguments: what it needs; everything is sent to the process.
    """

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, target, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self, number: int) -> Row:
        """The row of one step.

        Raises:
            ConfigError: the process has ended.
        """
        try:
            self.connection.send(number)
        except ConnectionError as error:
            raise self.ended() from error
        return self.receive()

    def receive(self) -> Row:
        """What the process says next."""
        try:
            said = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self.ended() from error
        if isinstance(said, Exception):
            raise said
        return said

    def ended(self) -> ConfigError:
        """How the process has ended."""
        self.process.join()
        code = self.process.exitcode
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        hint = "; too little memory?" if code == -signal.SIGKILL else ""
        return ConfigError("arms", self.name, f"fewer at a time, as its process was ended by {cause}{hint}")

    def close(self) -> None:
        """End the process, busy or not."""
        self.connection.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def serve(connection: Connection, target: Callable[..., None], arguments: Sequence[Any]) -> None:
    """The process: do as the parent says until it is gone, and leave the memory to the others between turns."""

    def report(row: Row) -> None:
        release_memory()
        connection.send(row)

    try:
        target(connection.recv, report, *arguments)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # nobody waits for it any more
        return
    except ConfigError as error:
        connection.send(error)


def serve_lens(turn: Turn, report: Report, config: DictConfig, engine: str) -> None:
    """Steps of lens with one of its rollout engines."""
    work = Workload.load(config)
    with instantiate(config.grader) as grader, work.sampler(config.engines[engine]) as sampler:
        report({})
        while True:
            report(work.step(sampler, grader, turn()))
