"""Generated hostile answers against real gold answers: no hang, no lost run, no verdict that depends on its neighbours.

LENS_FUZZ says how many; `make fuzz` takes 10,000. Each is graded twice, by two pools, in another order and in batches
of another size; of fewer than 1,000 a third is. The limits are tight, so that many answers meet them.
"""

from __future__ import annotations

import os
import random
import resource
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from lens.grading.judge import VERDICTS
from lens.grading.pool import Grade, Grader
from tests.support.grading import boxed
from tests.support.hostile import hostile_answer

COUNT = int(os.environ.get("LENS_FUZZ", "300"))
AGAIN = COUNT if COUNT >= 1000 else COUNT // 3
TIMEOUT_S, MEMORY_GB = 0.5, 0.5
PROBES = [("0.5", r"\frac12", "correct"), (r"x^2+x", "x(x+1)", "correct"), ("2.5", "3.5", "incorrect")]


def watch(grader: Grader, done: threading.Event, peaks: dict[int, tuple[float, ...]]) -> None:
    """Note the largest address space and resident memory of each worker, in GiB."""
    while not done.wait(0.05):
        for worker in list(grader._workers):
            with suppress(FileNotFoundError, ProcessLookupError, IndexError):  # it has ended, or is about to
                status = Path(f"/proc/{worker.process.pid}/status").read_text()
                peaks[worker.process.pid] = tuple(
                    int(status.split(f"{name}:")[1].split()[0]) / 2**20 for name in ("VmPeak", "VmHWM")
                )


def grade_in_batches(order: list[int], size: int) -> tuple[dict[int, Grade], dict[int, tuple[float, ...]]]:
    """Grade the answers with these numbers, so many at a time, by a pool of their own."""
    grades, peaks, done = {}, {}, threading.Event()
    with Grader(num_workers=2, timeout_s=TIMEOUT_S, memory_gb=MEMORY_GB) as grader:
        watcher = threading.Thread(target=watch, args=(grader, done, peaks))
        watcher.start()
        try:
            for start in range(0, len(order), size):
                numbers = order[start : start + size]
                completions, golds = zip(*map(hostile_answer, numbers), strict=True)
                batch = [*completions, *(boxed(prediction) for _, prediction, _ in PROBES)]
                graded = grader.grade(batch, [*golds, *(gold for gold, _, _ in PROBES)])
                grades |= dict(zip(numbers, graded[: len(numbers)], strict=True))
                assert [grade.verdict for grade in graded[len(numbers) :]] == [verdict for _, _, verdict in PROBES]
                print(f"{len(grades):,} of {len(order):,}", flush=True)
        finally:
            done.set()
            watcher.join()
    return grades, peaks


def test_hostile_answers_get_a_verdict_that_no_neighbour_and_no_order_changes():
    numbers = list(range(COUNT))
    start, cpu = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    first, peaks = grade_in_batches(numbers, size=max(1, COUNT // 4))
    elapsed, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    shuffled = random.Random(0).sample(numbers, AGAIN)
    second, more = grade_in_batches(shuffled, size=max(1, COUNT // 7))

    counts = Counter(grade.verdict for grade in first.values())
    used = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    peaks |= more
    print(f"\n{COUNT:,} answers in {elapsed:.0f} s, {used:.0f} s of processor time: {COUNT / used:.0f} a second of it")
    print(", ".join(f"{counts[verdict]:,} {verdict}" for verdict in VERDICTS))
    largest = [max(peak) for peak in zip(*peaks.values(), strict=True)]
    print(f"{len(peaks):,} workers in both passes, at most {largest[0]:.2f} GiB each, {largest[1]:.2f} resident")
    differing = {n: (first[n].verdict, second[n].verdict) for n in second if first[n] != second[n]}
    print(f"verdicts that differ between the passes: {differing}")
    assert largest[0] <= MEMORY_GB
    assert min(counts["correct"], counts["incorrect"], counts["no_answer"], counts["timeout"]) > 0
    # Processor time is measured, so an answer whose time is near the limit may come out as either wrong one.
    assert all("timeout" in pair and "correct" not in pair for pair in differing.values())
