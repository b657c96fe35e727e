"""What can end a run besides success: input that a user can mend, a run that cannot go on, and a wish to stop."""

from __future__ import annotations

import errno
from typing import Any

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit codes
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # disk, quota or file size limit reached


class ConfigError(ValueError):
    """A configuration value that cannot work; the message names key, value and what would be valid.

    The command line prints it as one line and exits with code 2, without a traceback (lens/cli/entry_point.py).

    Args:
        key: dotted config key as a user types it, such as ``trainer.rollouts.num_generations``.
        value: the value that was given.
        valid: what would be valid, in words.
    """

    def __init__(self, key: str, value: Any, valid: str):
        super().__init__(key, value, valid)
        self.key, self.value, self.valid = key, value, valid

    def __str__(self) -> str:
        return f"{self.key}={self.value!r}: {self.valid}"


class RunFailed(Exception):  # noqa: N818 - the field's word
    """The run cannot go on, for a reason that its message tells in one line; whole checkpoints stay whole."""


class StopRequested(Exception):  # noqa: N818 - it is no error
    """Somebody asked the run to stop (Ctrl-C, SIGTERM); a checkpoint has been written."""
