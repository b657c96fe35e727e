"""Turns SIGINT and SIGTERM into requests to stop, after this step or at once."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from lens.distributed.collectives import is_true_anywhere, stop_together, world_size
from lens.distributed.processes import TERMINATED
from lens.errors import StopRequested
from lens.seeding import random_states, restore_random_states

log = logging.getLogger(__name__)


class StopSignals:
    """Turns SIGINT and SIGTERM into requests to stop, which the training loop can obey.

    SIGINT (Ctrl-C) asks for a stop after this step. A second one stops at once, without a checkpoint.

    SIGTERM comes before a machine is taken away, and the grace time may be shorter than a step. So it interrupts work
    inside `abandonable`, and a checkpoint of the last finished step can be written at once. Several processes leave
    work that they do together at the next `lens.distributed.collectives.stop_together`. Work that each does for itself
    stops anywhere.
    """

    def __init__(self):
        self._requested = False
        self._abandonable = False

    def is_requested(self) -> bool:
        """Return whether any process was asked to stop. Every process must call this."""
        return is_true_anywhere(self._requested)

    @contextmanager
    def listening(self) -> Iterator[StopSignals]:
        """Handle both signals inside this context."""
        TERMINATED.clear()
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Let SIGTERM interrupt what runs inside. Random states are restored if it does.

        The work inside must change nothing else that a checkpoint stores.

        Raises:
            StopRequested: SIGTERM came before the work or during it.
        """
        states = random_states()
        try:
            stop_together()
            with self.interruptible() if world_size() == 1 else nullcontext():
                yield
        except StopRequested:
            restore_random_states(states)
            raise

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let SIGTERM interrupt what runs inside, anywhere. The work must wait for no other process.

        Raises:
            StopRequested: SIGTERM came to this process before the work or during it.
        """
        try:
            self._abandonable = True
            if TERMINATED.is_set():
                raise StopRequested
            yield
        finally:
            self._abandonable = False

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True
        if number == signal.SIGTERM:
            TERMINATED.set()
        at_once = TERMINATED.is_set()
        when = "now, with a checkpoint of the last step" if at_once else "after this step, with a checkpoint"
        log.warning("Stopping %s. Ctrl-C again stops at once.", when)
        if at_once and self._abandonable:
            self._abandonable = False
            raise StopRequested
