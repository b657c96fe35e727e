"""The wish to stop, as signals bring it: after this step, or now."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lens.checkpoints import random_states, restore_random_states
from lens.distributed import any_of, world_size
from lens.errors import StopRequested

log = logging.getLogger(__name__)


class StopSignals:
    """Turns SIGINT and SIGTERM into wishes that the loop can meet.

    SIGINT (Ctrl-C) asks for a stop after this step, a second one for a stop now, without a checkpoint. SIGTERM comes
    before a machine is taken away, and its grace time may be shorter than a step: what may be abandoned is, so that a
    checkpoint of the last whole step can be written at once. Several processes cannot abandon what they do together:
    there it is as one SIGINT.
    """

    def __init__(self):
        self.requested = False
        self._at_once = False
        self._abandonable = False

    def agreed(self) -> bool:
        """Whether a stop is wished for, in some process; all have to ask."""
        return any_of(self.requested)

    @contextmanager
    def listening(self) -> Iterator[StopSignals]:
        """Take the signals while this lasts."""
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
        if world_size() > 1:
            yield
            return
        try:
            self._abandonable = True
            if self._at_once:
                raise StopRequested
            yield
        except StopRequested:
            restore_random_states(states)
            raise
        finally:
            self._abandonable = False

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        self._at_once = self._at_once or (number == signal.SIGTERM and world_size() == 1)
        when = "now, with a checkpoint of the last step" if self._at_once else "after this step, with a checkpoint"
        log.warning("Stopping %s. Ctrl-C again stops at once.", when)
        if self._at_once and self._abandonable:
            self._abandonable = False
            raise StopRequested
