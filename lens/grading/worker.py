"""A worker process: reads answers, judges them, and writes a byte for each verdict."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import sys

from lens.distributed.processes import end_with_parent
from lens.grading.judge import VERDICTS, Settings, judge


def serve(memory_gb: float) -> None:
    """Be a worker: read chunks from stdin, and write a byte for each verdict to what was stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the parent, who then ends its workers
    end_with_parent()
    limit = int(memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    announcements = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no verdict
    logging.disable()
    if judge(r"\frac{1}{2}", "0.5") != "correct":  # also loads math-verify, while no clock runs
        raise RuntimeError("math-verify does not find that 1/2 is 0.5; its ANTLR runtime may be of the wrong version")
    gc.freeze()  # what is loaded now stays, so the collector need not look at it again
    os.write(announcements, b"\0")
    for stream in (1, 2):  # from here on, all that could be printed are complaints about model output
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)

    for line in sys.stdin:
        fields, pairs = json.loads(line)
        settings = Settings(**fields)
        for gold, prediction in pairs:
            os.write(announcements, bytes([VERDICTS.index(judge(gold, prediction, settings))]))


if __name__ == "__main__":
    serve(memory_gb=float(sys.argv[1]))
