"""Exceptions and exit codes for the ways a run can end early: bad input, failure, and a request to stop."""

from __future__ import annotations

import errno
from typing import Any

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit codes
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, the quota or the file size limit is exhausted


class ConfigError(ValueError):
    """Says that a configuration value cannot work; the message names key, value and what would be valid.

    The command line prints it as one line and exits with code 2, without a traceback (lens/cli/entry_point.py).

    Args:
        key: dotted config key as a user types it, such as ``trainer.rollouts.num_generations``.
        value: the value that was given.
        valid: what would be valid, in words, such as "must be an integer >= 2".
    """

    def __init__(self, key: str, value: Any, valid: str):
        super().__init__(key, value, valid)
        self.key, self.value, self.valid = key, value, valid

    def __str__(self) -> str:
        return f"{self.key}={self.value!r}: {self.valid}"


class RunFailed(Exception):  # noqa: N818 - the field's word
    """Says in one line why the run cannot continue. Complete checkpoints stay as they are."""


class ProcessLost(RunFailed):
    """Says that another process of the run, or its machine, is gone."""


class FailedElsewhere(Exception):  # noqa: N818 - it is another process's error
    """Says in which of several processes a common work failed, and why."""


class StopRequested(Exception):  # noqa: N818 - it is not an error
    """Says that somebody asked the run to stop (Ctrl-C, SIGTERM); the run has written a checkpoint."""
