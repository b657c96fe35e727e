"""Arms of a benchmark that end badly. Their processes import this module alone, so that they start quickly."""

from __future__ import annotations

import os
import signal

from lens.errors import ConfigError


def fails(turn, report) -> None:
    report({})
    turn()
    raise ConfigError("key", "value", "another")


def dies(turn, report) -> None:
    os._exit(7)


def is_killed(turn, report, fatal: int) -> None:
    report({})
    while (number := turn()) < fatal:
        report({"s": float(number)})
    os.kill(os.getpid(), signal.SIGKILL)
