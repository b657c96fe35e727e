"""Grades completions against gold answers, in worker processes that can be killed.

The caller's process does only what is cheap and cannot hang. Workers do the algebra:

    Grader, in the caller's process   last box ─▶ decided? seen before? a repeat? ─▶ chunks, sorted by gold
    workers (lens/grading/worker.py)         judge ─▶ one byte a verdict, written the moment it is known

A worker shares two pipes with its parent and nothing else, in particular not the parent's ``__main__``. It announces
each verdict at once, so the parent knows which answer a worker is on, and since when. If an answer takes too long, the
parent kills the worker, starts another, and gives the rest of the chunk to any free worker. A worker that dies costs
only the answer it was on. Workers end with their parent, for whatever reason it ends: idle ones because their pipe
closes, busy ones because the kernel kills them (Linux's parent-death signal).
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Protocol

from lens.errors import ConfigError
from lens.grading.judge import REWARD_SETTINGS, VERDICTS, Settings, Verdict, last_boxed

Pair = tuple[str, str]  # gold, prediction: the order in which math-verify takes them
CHUNK = 16  # most pairs that a worker gets at a time; few, so that no worker is idle at the end of a batch
SHORT_INTEGER = re.compile(r"-?[0-9]{1,15}")  # math-verify compares two of these as integers; so can the parent
EXCESS_LENGTH = 1_000  # characters by which a right answer may be longer than the gold
MIN_MEMORY_GB = 0.25  # a worker takes less than 0.1 before it judges anything
START_LIMIT_S = 120.0  # a worker takes about 1 s to start, but the machine may be busy
START_ATTEMPTS = 3  # failed starts in one call after which the installation is taken to be broken


@dataclass(frozen=True)
class Grade:
    """The verdict on a completion, and the text that was judged: the content of its last box."""

    verdict: Verdict
    extracted: str | None = None

    @property
    def correct(self) -> bool:
        return self.verdict == "correct"


class AnyGrader(Protocol):
    """What grades answers: a `Grader`, or those of all processes as one (lens/grading/parallel_grader.py)."""

    def grade(self, completions: Sequence[str], answers: Sequence[str]) -> list[Grade]:
        """Grade each completion against the gold answer at the same place."""


def grade_groups(grader: AnyGrader, texts: Sequence[str], golds: Sequence[str], num_generations: int) -> list[Verdict]:
    """Grade whole groups: return the verdict on each answer, in order.

    Args:
        grader: the grader.
        texts: the answers, ``num_generations`` in a row for each gold.
        golds: the gold answers.
        num_generations: answers to each question.
    """
    repeated = [gold for gold in golds for _ in range(num_generations)]
    return [grade.verdict for grade in grader.grade(texts, repeated)]


class Grader:
    """A pool of worker processes that judge answers, each within limits of time and memory.

    Use it as a context manager, from one thread at a time. Workers start on entering, in the background, and are
    replaced when they are lost. Equal pairs of gold and prediction are judged once, within a call and across calls (the
    last 100,000). Only an ``error`` is not remembered, as it may be due to the worker and not to the answer.

    Args:
        num_workers: number of worker processes.
        timeout_s: seconds of wall-clock time that one answer may take.
        memory_gb: address space of one worker, in GiB.

    Raises:
        ConfigError: no worker could work with a value.
    """

    remembered = 100_000  # verdicts kept for pairs that come again

    def __init__(self, num_workers: int = 2, timeout_s: float = 5.0, memory_gb: float = 2.0):
        if not num_workers >= 1:
            raise ConfigError("grader.num_workers", num_workers, "must be at least 1")
        if not 0 < timeout_s < math.inf:
            raise ConfigError("grader.timeout_s", timeout_s, "must be a finite number of seconds above 0")
        if not memory_gb >= MIN_MEMORY_GB:
            raise ConfigError("grader.memory_gb", memory_gb, f"must be at least {MIN_MEMORY_GB} (GiB for each worker)")
        self.num_workers, self.timeout_s, self.memory_gb = num_workers, timeout_s, memory_gb
        self._workers: list[_Worker] = []
        self._seen: OrderedDict[tuple[Pair, Settings], Verdict] = OrderedDict()

    def __enter__(self) -> Grader:
        self._start_missing()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, busy or not."""
        for worker in list(self._workers):
            self._end(worker)

    def grade(
        self, completions: Sequence[str], answers: Sequence[str], settings: Settings = REWARD_SETTINGS
    ) -> list[Grade]:
        """Grade each completion against the gold answer at the same place.

        Some completions need no algebra. Without a box the verdict is ``no_answer``. If the box holds over 1,000
        characters more than the gold, it is ``incorrect``: nothing that long answers the question. Two short integers
        are compared as numbers.

        Args:
            completions: what the model wrote.
            answers: the gold answers, without a box.
            settings: how to compare. Rewards use the default; tests and audits may use another.

        Returns:
            One grade per completion, in the same order.

        Raises:
            ValueError: there are not as many answers as completions.
            RuntimeError: workers do not start.
        """
        if len(completions) != len(answers):
            raise ValueError(f"{len(completions)} completions, but {len(answers)} answers")
        predictions = map(last_boxed, completions) if settings.boxed_only else completions
        pairs = list(zip(answers, predictions, strict=True))
        verdicts = {pair: self._known(*pair, settings) for pair in dict.fromkeys(pairs)}
        judged = self._judge(sorted(pair for pair, verdict in verdicts.items() if verdict is None), settings)
        self._seen |= {(pair, settings): verdict for pair, verdict in judged.items() if verdict != "error"}
        while len(self._seen) > self.remembered:
            self._seen.popitem(last=False)
        verdicts |= judged
        return [Grade(verdicts[pair], extracted=pair[1]) for pair in pairs]

    def list_failing_golds(self, answers: Sequence[str]) -> list[tuple[int, str, Verdict]]:
        """Grade each gold answer against itself. Return the place, answer and verdict of those that are not correct.

        No answer of a model can be correct if the gold itself is not.
        """
        grades = self.grade([rf"\boxed{{{answer}}}" for answer in answers], answers)
        checked = enumerate(zip(answers, grades, strict=True))
        return [(place, answer, grade.verdict) for place, (answer, grade) in checked if not grade.correct]

    def _known(self, gold: str, prediction: str | None, settings: Settings) -> Verdict | None:
        """Return the verdict on a pair if it can be told without a worker, else None."""
        if prediction is None:
            return "no_answer"
        if settings.boxed_only and len(prediction) > len(gold) + EXCESS_LENGTH:
            return "incorrect"
        if settings.boxed_only and SHORT_INTEGER.fullmatch(gold) and SHORT_INTEGER.fullmatch(prediction):
            return "correct" if int(gold) == int(prediction) else "incorrect"
        if (key := ((gold, prediction), settings)) in self._seen:
            self._seen.move_to_end(key)
        return self._seen.get(key)

    def _judge(self, pairs: Sequence[Pair], settings: Settings) -> dict[Pair, Verdict]:
        """Have workers judge distinct, sorted pairs. Thanks to the order, mostly a single worker parses a gold."""
        size = max(1, min(CHUNK, len(pairs) // (4 * self.num_workers)))
        chunks = deque(pairs[start : start + size] for start in range(0, len(pairs), size))
        verdicts: dict[Pair, Verdict] = {}
        failed_starts = 0
        try:
            while len(verdicts) < len(pairs):
                self._start_missing()
                for worker in self._workers:
                    if chunks and worker.idle:
                        worker.give(chunks.popleft(), settings)
                next_deadline = min(worker.deadline for worker in self._workers)
                heard = wait([worker.output for worker in self._workers], max(0.0, next_deadline - time.monotonic()))
                for worker in list(self._workers):
                    loss = worker.listen(verdicts) if worker.output in heard else worker.overdue()
                    if loss is None:
                        continue
                    self._end(worker)
                    failed_starts += not worker.ready
                    if failed_starts == START_ATTEMPTS:
                        raise RuntimeError("grading workers do not start; what they wrote to stderr says why")
                    if worker.pairs:
                        verdicts[worker.pairs.popleft()] = loss
                    if worker.pairs:
                        chunks.append(worker.pairs)
        finally:  # after an exception, such as Ctrl-C, no worker may continue with pairs that the next call lacks
            for worker in [worker for worker in self._workers if worker.pairs]:
                self._end(worker)
        return verdicts

    def _start_missing(self) -> None:
        for worker in [worker for worker in self._workers if worker.idle and worker.process.poll() is not None]:
            self._end(worker)
        while len(self._workers) < self.num_workers:
            self._workers.append(_Worker(self.timeout_s, self.memory_gb))

    def _end(self, worker: _Worker) -> None:
        worker.kill()
        self._workers.remove(worker)


class _Worker:
    """The parent's view of a worker process. ``pairs`` are those it was given but has not judged yet, in order."""

    def __init__(self, timeout_s: float, memory_gb: float):
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lens.grading.worker", str(memory_gb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"},  # fixes sympy's order of terms
        )
        self.output = self.process.stdout
        self.timeout_s = timeout_s
        self.pairs: deque[Pair] = deque()
        self.ready = False
        self.deadline = time.monotonic() + START_LIMIT_S

    @property
    def idle(self) -> bool:
        return self.ready and not self.pairs

    def give(self, pairs: Sequence[Pair], settings: Settings) -> None:
        self.pairs.extend(pairs)
        self.deadline = time.monotonic() + self.timeout_s
        with suppress(BrokenPipeError):  # the worker has just died; `listen` will notice
            self.process.stdin.write(json.dumps([asdict(settings), list(pairs)]).encode() + b"\n")
            self.process.stdin.flush()

    def listen(self, verdicts: dict[Pair, Verdict]) -> Verdict | None:
        """Enter the verdicts that the worker has announced, and restart its clock. Return ``error`` if it is dead."""
        announced = os.read(self.output.fileno(), 4096)
        if not announced:
            return "error"
        if not self.ready:
            self.ready, announced = True, announced[1:]
        for code in announced:
            verdicts[self.pairs.popleft()] = VERDICTS[code]
        self.deadline = time.monotonic() + self.timeout_s if self.pairs else math.inf
        return None

    def overdue(self) -> Verdict | None:
        return "timeout" if time.monotonic() > self.deadline else None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.output.close()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
