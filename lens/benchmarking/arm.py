"""Runs each arm of a benchmark in a process of its own, so that arms share neither memory nor imported modules."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from lens.benchmarking.meter import Row, release_memory
from lens.errors import ConfigError

Turn = Callable[[], int]  # waits for the arm's turn and returns the number of the round
Report = Callable[[Row], None]


class ArmProcess:
    """Starts a process that takes one step each time it is asked; this is the parent's end of it.

    Args:
        name: the name of the arm.
        target: runs in the process as ``target(turn, report, *arguments)``. It calls `report` once when it is ready,
            and once after each turn.
        arguments: further arguments of ``target``; they are pickled and sent to the process.
    """

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, target, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self, number: int) -> Row:
        """Let the process take one step, and return the step's row.

        Raises:
            ConfigError: the process has ended.
        """
        try:
            self.connection.send(number)
        except ConnectionError as error:
            raise self.ended() from error
        return self.receive()

    def receive(self) -> Row:
        """Wait for the process's next report and return it.

        Raises:
            ConfigError: the process has ended, or it reports a value that cannot work.
        """
        try:
            said = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self.ended() from error
        if isinstance(said, Exception):
            raise said
        return said

    def ended(self) -> ConfigError:
        """Return the error that says how the process ended."""
        self.process.join()
        code = self.process.exitcode
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        hint = "; too little memory?" if code == -signal.SIGKILL else ""
        return ConfigError("arms", self.name, f"take fewer arms at a time: its process ended with {cause}{hint}")

    def close(self) -> None:
        """End the process, even if it is busy."""
        self.connection.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def serve(connection: Connection, target: Callable[..., None], arguments: Sequence[Any]) -> None:
    """Run the target in the process until the parent is gone.

    After each turn it gives freed memory back to the system, so that the other arms can have it.
    """

    def report(row: Row) -> None:
        release_memory()
        connection.send(row)

    try:
        target(connection.recv, report, *arguments)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the parent is gone
        return
    except ConfigError as error:
        connection.send(error)
