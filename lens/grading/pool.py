"""Grades completions against gold answers, in worker processes that can be killed.

The caller's process does only what is cheap and cannot hang. Workers do the algebra:

    Grader, in the caller's process   last box ─▶ decided? seen before? a repeat? ─▶ chunks, sorted by gold
    workers (lens/grading/worker.py)         judge ─▶ a record each, written the moment it is known

A worker shares two pipes with its parent and nothing else, in particular not the parent's ``__main__``. It announces
each verdict at once, so the parent knows which answer a worker is on, and since when. An answer that takes too much
processor time or memory ends its worker. The parent starts another, and gives the rest of the chunk to any free worker.
The answer itself gets a second try, last of all and in a worker that has judged nothing before. So neither another
answer nor a busy machine decides its verdict. Workers end with their parent, for whatever reason it ends: idle ones
because their pipe closes, busy ones because the kernel kills them (Linux's parent-death signal).
"""

from __future__ import annotations

import math
import re
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Literal, get_args

from lens.errors import ConfigError
from lens.grading.judge import (
    JUDGED,
    MAY_TEACH,
    REWARD_SETTINGS,
    UNJUDGEABLE,
    Judgement,
    Settings,
    Unjudgeable,
    Verdict,
    last_boxed,
)
from lens.grading.verifiers import split_gold
from lens.grading.worker_process import Pair, WorkerProcess

CHUNK = 16  # most pairs that a worker gets at a time; few, so that no worker is idle at the end of a batch
SHORT_INTEGER = re.compile(r"-?[0-9]{1,15}")  # math-verify compares two of these as integers; so can the parent
EXCESS_LENGTH = 1_000  # characters by which a right answer may be longer than the gold
MIN_MEMORY_GB = 0.25  # a worker takes less than 0.1 before it judges anything
Reward = Literal["verdict", "score"]  # what an answer earns in training
START_ATTEMPTS = 3  # failed starts in one call after which the installation is taken to be broken


@dataclass(frozen=True)
class Grade:
    """The verdict on a completion, the text that was judged, which is the content of its last box, and its score.

    The score is in [0, 1]; None where the verifier gives verdicts alone.
    """

    verdict: Verdict
    extracted: str | None = None
    score: float | None = None

    @property
    def correct(self) -> bool:
        return self.verdict == "correct"

    @property
    def credit(self) -> float:
        """The score; without one, 1 for a correct answer and 0 for any other."""
        return float(self.correct) if self.score is None else self.score


class Grader:
    """A pool of worker processes that judge answers, each within limits of time and memory.

    Use it as a context manager, from one thread at a time. Workers start on entering, in the background, and are
    replaced when they are lost. Equal pairs of gold and prediction are judged once, within a call and across calls (the
    last 100,000). A ``timeout`` or ``error`` is not remembered, as it may be due to the machine and not to the answer.

    Args:
        num_workers: number of worker processes.
        timeout_s: seconds of processor time that one answer may take.
        memory_gb: address space of one worker, in GiB.
        unjudgeable: what an answer that cannot be judged counts as in training: ``incorrect``, or ``invalid``, which
            teaches nothing. It changes no verdict.
        correct_from: the score from which an answer is correct, where its verifier gives scores.
        reward: what an answer earns in training: ``verdict``, 1 if it is correct and else 0, or ``score``.

    Raises:
        ConfigError: no worker could work with a value.
    """

    remembered = 100_000  # verdicts kept for pairs that come again
    # Seconds of wall-clock time after which a worker is taken to be stuck; more for a long timeout_s. An answer never
    # makes a worker wait, so this only ends workers that something else has stopped.
    stall_s = 600.0

    def __init__(
        self,
        num_workers: int = 2,
        timeout_s: float = 5.0,
        memory_gb: float = 2.0,
        unjudgeable: Unjudgeable = "incorrect",
        correct_from: float = 1.0,
        reward: Reward = "verdict",
    ):
        if not num_workers >= 1:
            raise ConfigError("grader.num_workers", num_workers, "must be at least 1")
        if not 0 < timeout_s < math.inf:
            raise ConfigError("grader.timeout_s", timeout_s, "must be a finite number of seconds above 0")
        if not memory_gb >= MIN_MEMORY_GB:
            raise ConfigError("grader.memory_gb", memory_gb, f"must be at least {MIN_MEMORY_GB} (GiB for each worker)")
        if unjudgeable not in MAY_TEACH:
            raise ConfigError("grader.unjudgeable", unjudgeable, f"must be one of {', '.join(MAY_TEACH)}")
        if not 0 < correct_from <= 1:
            raise ConfigError("grader.correct_from", correct_from, "must be a number in (0, 1]")
        if reward not in get_args(Reward):
            raise ConfigError("grader.reward", reward, f"must be one of {', '.join(get_args(Reward))}")
        self.num_workers, self.timeout_s, self.memory_gb = num_workers, timeout_s, memory_gb
        self.unjudgeable, self.correct_from, self.reward = unjudgeable, correct_from, reward
        self._workers: list[WorkerProcess] = []
        self._seen: OrderedDict[tuple[Pair, Settings], Judgement] = OrderedDict()

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
        are compared as numbers. Where an answer cannot be judged, its gold is graded against itself: if that fails,
        the verdict is ``bad_gold``.

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
        pairs = [(gold, take_answer(text, gold, settings)) for text, gold in zip(completions, answers, strict=True)]
        judgements = self._decide(pairs, settings)
        unjudged = [pair for pair, judgement in judgements.items() if judgement.verdict in UNJUDGEABLE]
        of_golds = self._decide_golds(list(dict.fromkeys(gold for gold, _ in unjudged)), settings)
        judgements |= {pair: Judgement("bad_gold") for pair in unjudged if of_golds[pair[0]] != "correct"}
        return [Grade(judgements[pair].verdict, pair[1], judgements[pair].score) for pair in pairs]

    def list_failing_golds(self, answers: Sequence[str]) -> list[tuple[int, str, Verdict]]:
        """Grade each gold answer against itself. Return the place, answer and verdict of those that are not correct.

        No answer of a model can be correct if the gold itself is not.
        """
        verdicts = self._decide_golds(answers, REWARD_SETTINGS)
        return [(place, gold, verdicts[gold]) for place, gold in enumerate(answers) if verdicts[gold] != "correct"]

    def _decide_golds(self, golds: Sequence[str], settings: Settings) -> dict[str, Verdict]:
        """Return the verdict on each gold answer, graded against itself."""
        pairs = {gold: (gold, take_own_answer(gold, settings)) for gold in golds}
        judgements = self._decide(list(pairs.values()), settings)
        return {gold: judgements[pair].verdict for gold, pair in pairs.items()}

    def _decide(self, pairs: Sequence[tuple[str, str | None]], settings: Settings) -> dict[tuple, Judgement]:
        """Return the judgement on each pair, and remember it if it was judged."""
        judgements = {pair: self._known(*pair, settings) for pair in dict.fromkeys(pairs)}
        judged = self._judge(sorted(pair for pair, judgement in judgements.items() if judgement is None), settings)
        self._seen |= {(pair, settings): found for pair, found in judged.items() if found.verdict in JUDGED}
        while len(self._seen) > self.remembered:
            self._seen.popitem(last=False)
        return {pair: self._settle(judgement) for pair, judgement in (judgements | judged).items()}

    def _settle(self, judgement: Judgement) -> Judgement:
        """Return a judgement with the verdict that its score means here, if it has one."""
        if judgement.score is None:
            return judgement
        return judgement._replace(verdict="correct" if judgement.score >= self.correct_from else "incorrect")

    def _known(self, gold: str, prediction: str | None, settings: Settings) -> Judgement | None:
        """Return the judgement on a pair if it can be told without a worker, else None."""
        if prediction is None:
            return Judgement("no_answer")
        if settings.boxed_only and len(prediction) > len(gold) + EXCESS_LENGTH:
            return Judgement("incorrect")
        if settings.boxed_only and SHORT_INTEGER.fullmatch(gold) and SHORT_INTEGER.fullmatch(prediction):
            return Judgement("correct" if int(gold) == int(prediction) else "incorrect")
        if (key := ((gold, prediction), settings)) in self._seen:
            self._seen.move_to_end(key)
        return self._seen.get(key)

    def _judge(self, pairs: Sequence[Pair], settings: Settings) -> dict[Pair, Judgement]:
        """Have workers judge distinct, sorted pairs. Thanks to the order, mostly a single worker parses a gold.

        A pair that its worker did not survive is tried once more, by a fresh worker.
        """
        size = max(1, min(CHUNK, len(pairs) // (4 * self.num_workers)))
        chunks = deque(pairs[start : start + size] for start in range(0, len(pairs), size))
        judgements: dict[Pair, Judgement] = {}
        lost: set[Pair] = set()  # those that a worker did not survive
        again: deque[Pair] = deque()  # those of them that wait for their second try
        failed_starts = 0
        try:
            while len(judgements) < len(pairs):
                self._start_missing()
                for worker in [worker for worker in self._workers if worker.idle]:
                    if chunks:
                        worker.give(chunks.popleft(), settings)
                    elif again and worker.fresh:
                        worker.give([again.popleft()], settings)
                    elif again and not any(other.fresh for other in self._workers):
                        self._end(worker)
                self._start_missing()
                next_deadline = min(worker.deadline for worker in self._workers)
                heard = wait([worker.output for worker in self._workers], max(0.0, next_deadline - time.monotonic()))
                for worker in list(self._workers):
                    loss = worker.listen(judgements) if worker.output in heard else worker.overdue()
                    if loss is None:
                        continue
                    self._end(worker)
                    failed_starts += not worker.ready
                    if failed_starts == START_ATTEMPTS:
                        raise RuntimeError("grading workers do not start; what they wrote to stderr says why")
                    if worker.pairs:
                        pair = worker.pairs.popleft()
                        if pair in lost:
                            judgements[pair] = Judgement(loss)
                        else:
                            lost.add(pair)
                            again.append(pair)
                    if worker.pairs:
                        chunks.append(worker.pairs)
        finally:  # after an exception, such as Ctrl-C, no worker may continue with pairs that the next call lacks
            for worker in [worker for worker in self._workers if worker.pairs]:
                self._end(worker)
        return judgements

    def _start_missing(self) -> None:
        for worker in [worker for worker in self._workers if worker.idle and worker.process.poll() is not None]:
            self._end(worker)
        while len(self._workers) < self.num_workers:
            self._workers.append(WorkerProcess(self.timeout_s, self.memory_gb, max(self.stall_s, 20 * self.timeout_s)))

    def _end(self, worker: WorkerProcess) -> None:
        worker.kill()
        self._workers.remove(worker)


def take_answer(completion: str, gold: str, settings: Settings) -> str | None:
    """Return what is held against the gold answer: the content of the last box, or the whole completion.

    Only math-verify, and only without ``settings.boxed_only``, looks for the answer itself.
    """
    whole = not settings.boxed_only and split_gold(gold).verifier is None
    return completion if whole else last_boxed(completion)


def take_own_answer(gold: str, settings: Settings) -> str | None:
    """Return the answer that a gold answer itself gives."""
    own = split_gold(gold).answer
    return take_answer(rf"\boxed{{{own}}}" if settings.boxed_only or own != gold else own, gold, settings)
