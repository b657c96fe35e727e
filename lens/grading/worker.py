"""Runs a worker process, which reads answers, judges them, and writes a record for each."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import resource
import signal
import sys

from lens.distributed.processes import end_with_parent
from lens.grading.judge import VERDICTS, Settings, judge
from lens.grading.verifiers import prepare, verify
from lens.grading.worker_process import RECORD


def serve(timeout_s: float, memory_gb: float) -> None:
    """Read chunks of pairs from stdin, judge them, and write each judgement to the original stdout.

    The kernel counts the processor time of each answer, and kills this process by SIGPROF at the limit. Time during
    which the process does not run does not count, and no computation can put it off, in C or in Python.

    Args:
        timeout_s: seconds of processor time that one answer may take.
        memory_gb: address space that this process may use, in GiB.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the parent, which then ends its workers
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent may have left it ignored
    end_with_parent()
    limit = int(memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    announcements = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not be read as a verdict
    logging.disable()
    if judge(r"\frac{1}{2}", "0.5") != "correct":  # also loads math-verify, while no clock runs
        raise RuntimeError("math-verify does not find that 1/2 is 0.5; its ANTLR runtime may be of the wrong version")
    gc.freeze()  # what is loaded now stays, so the collector can skip it
    os.write(announcements, b"\0")
    for stream in (1, 2):  # from here on, anything printed is only a complaint about model output
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)

    for line in sys.stdin:
        fields, pairs = json.loads(line)
        settings = Settings(**fields)
        for gold, prediction in pairs:
            prepare(gold)  # while no clock runs
            signal.setitimer(signal.ITIMER_PROF, timeout_s)
            verdict, score = verify(gold, prediction, settings)
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(announcements, RECORD.pack(VERDICTS.index(verdict), math.nan if score is None else score))


if __name__ == "__main__":
    serve(timeout_s=float(sys.argv[1]), memory_gb=float(sys.argv[2]))
