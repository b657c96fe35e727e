"""The wish to stop, as signals bring it: after this step, or now."""

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
    """Turns SIGINT and SIGTERM into wishes that the loop can meet.

    SIGINT (Ctrl-C) asks for a stop after this step, a second one for a stop now, without a checkpoint. SIGTERM comes
    before a machine is taken away, and its grace time may be shorter than a step: what may be abandoned is, so that a
    checkpoint of the last whole step can be written at once. Several processes leave what they do together at the next
    place that all come to (`lens.distributed.collectives.stop_together`), and what each does apart anywhere.
    """

    def __init__(self):
        self._requested = False
        self._abandonable = False

    def is_requested(self) -> bool:
        """Whether some process was asked to stop. Every process has to call it."""
        return is_true_anywhere(self._requested)

    @contextmanager
    def listening(self) -> Iterator[StopSignals]:
        """Take the signals while this lasts."""
        TERMINATED.clear()
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Work that lasts, and changes nothing but random states, which are put back where it is abandoned.

        Raises:
            StopRequested: SIGTERM has come, before or in the middle of it.
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
        """Abandonable work that waits for no other process.

        Raises:
            StopRequested: SIGTERM has come to this one, before or in the middle of it.
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
