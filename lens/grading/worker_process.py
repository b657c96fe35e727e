"""The parent's side of a worker process: starts it, gives it answers, hears its verdicts, and kills it."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from lens.grading.judge import VERDICTS, Judgement, Settings, Verdict

Pair = tuple[str, str]  # gold, prediction: the order in which math-verify takes them
RECORD = struct.Struct("<Bd")  # a judgement on its way: the verdict's place in VERDICTS, and the score or NaN
START_LIMIT_S = 600.0  # a worker takes about 1 s to start, but the machine may be busy


class WorkerProcess:
    """A worker process (lens/grading/worker.py), as its parent sees it.

    Args:
        timeout_s: seconds of processor time that one answer may take.
        memory_gb: address space of the worker, in GiB.
        stall_s: seconds of wall-clock time after which it is taken to be stuck on an answer.

    Attributes:
        pairs: those that it was given but has not judged yet, in order.
        fresh: whether it was given none yet.
    """

    def __init__(self, timeout_s: float, memory_gb: float, stall_s: float):
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lens.grading.worker", str(timeout_s), str(memory_gb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The hash seed fixes sympy's order of terms. numpy, where a verifier uses it, reserves memory by threads.
            env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"},
        )
        self.output = self.process.stdout
        self.stall_s = stall_s
        self.pairs: deque[Pair] = deque()
        self.ready, self.fresh = False, True
        self.deadline = time.monotonic() + START_LIMIT_S

    @property
    def idle(self) -> bool:
        """Return whether it waits for answers."""
        return self.ready and not self.pairs

    def give(self, pairs: Sequence[Pair], settings: Settings) -> None:
        """Send it pairs to judge."""
        self.pairs.extend(pairs)
        self.fresh = False
        self.deadline = time.monotonic() + self.stall_s
        with suppress(BrokenPipeError):  # the worker has just died; `listen` will notice
            self.process.stdin.write(json.dumps([asdict(settings), list(pairs)]).encode() + b"\n")
            self.process.stdin.flush()

    def listen(self, judgements: dict[Pair, Judgement]) -> Verdict | None:
        """Enter the judgements that it has announced, and restart its clock.

        Returns:
            None if it lives; else ``timeout`` if the kernel has killed it for its processor time, or ``error``.
        """
        announced = os.read(self.output.fileno(), 1 if not self.ready else 400 * RECORD.size)  # whole records
        if not announced:
            return "timeout" if self.process.wait() == -signal.SIGPROF else "error"
        if not self.ready:
            self.ready, announced = True, b""
        for code, score in RECORD.iter_unpack(announced):
            judgements[self.pairs.popleft()] = Judgement(VERDICTS[code], None if math.isnan(score) else score)
        self.deadline = time.monotonic() + self.stall_s if self.pairs else math.inf
        return None

    def overdue(self) -> Verdict | None:
        """Return ``timeout`` if it has taken too long on its answer by the clock on the wall, else None."""
        return "timeout" if time.monotonic() > self.deadline else None

    def kill(self) -> None:
        """End it at once, busy or not."""
        self.process.kill()
        self.process.wait()
        self.output.close()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
