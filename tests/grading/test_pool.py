"""The pool of graders with the real math-verify and real processes: order, limits, losses, shutdown and speed."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lens.errors import ConfigError
from lens.grading.judge import Settings, judge
from lens.grading.pool import Grade, Grader
from tests.support.grading import boxed

STUCK = r"9^{9^{9^9}}"  # integer arithmetic that would outlast us all
TICKS = os.sysconf("SC_CLK_TCK")


def workers_of(grader: Grader) -> list[int]:
    return [worker.process.pid for worker in list(grader._workers)]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to take note does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ignores_ctrl_c(pid: int) -> bool:
    ignored = Path(f"/proc/{pid}/status").read_text().split("SigIgn:")[1].split()[0]
    return bool(int(ignored, 16) & 1 << signal.SIGINT - 1)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def all_ready(grader: Grader) -> bool:
    """Hear what has started; a call of `grade` would do the same."""
    for worker in grader._workers:
        if not worker.ready:
            worker.listen({})
    return True


def wait_until_stuck(pid: int) -> None:
    """Wait until a worker has started and been busy for longer than any ordinary answer takes."""
    wait_until(lambda: cpu_seconds(pid) > 2.0, seconds=60)


def test_settings_travel_to_the_workers_and_apart_in_memory(grader: Grader):
    anywhere = Settings(boxed_only=False, expr=True)
    for _ in range(2):
        assert not grader.grade(["it is 7"], ["7"])[0].correct
        assert grader.grade(["it is 7"], ["7"], settings=anywhere) == [Grade("correct", "it is 7")]
    assert grader.grade([boxed("0.33")], [r"\frac13"])[0].verdict == "incorrect"
    assert grader.grade([boxed("0.33")], [r"\frac13"], settings=Settings(float_rounding=2))[0].verdict == "correct"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_workers", 0),
        ("timeout_s", 0),
        ("timeout_s", math.nan),
        ("timeout_s", math.inf),
        ("memory_gb", 0.1),
        ("unjudgeable", "wrong"),
    ],
)
def test_values_that_cannot_work_are_refused(key: str, value: float):
    with pytest.raises(ConfigError, match=rf"grader\.{key}={value!r}"):
        Grader(**{key: value})


def test_as_many_answers_as_completions(grader: Grader):
    with pytest.raises(ValueError, match="2 completions, but 1 answers"):
        grader.grade(["a", "b"], ["a"])
    assert grader.grade([], []) == []


def test_the_shipped_config_makes_a_grader():
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(Path(__file__).parents[2] / "configs/grader/math_verify.yaml")
    with instantiate(config) as configured:
        assert configured.grade([boxed("1.5")], ["1.5"])[0].correct


# --- order, repeats and memory ---


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans()), max_size=60), st.randoms())
def test_grades_come_in_the_order_of_the_completions(grader: Grader, triples, rng: random.Random):
    rng.shuffle(triples)
    texts = [(str(predicted / 2), str(gold / 2)) for predicted, gold, _ in triples]
    completions = [boxed(text) if triple[2] else text for (text, _), triple in zip(texts, triples, strict=True)]
    grades = grader.grade(completions, [gold for _, gold in texts])
    for (predicted, gold, with_box), grade in zip(triples, grades, strict=True):
        assert grade.verdict == ("no_answer" if not with_box else "correct" if predicted == gold else "incorrect")
        assert grade.extracted == (str(predicted / 2) if with_box else None)


class Counting(Grader):
    """A grader that counts the pairs that workers get, and the workers that it ends."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.judged: list[tuple[str, str]] = []
        self.ended = 0

    def _judge(self, pairs, settings):
        self.judged.extend(pairs)
        return super()._judge(pairs, settings)

    def _end(self, worker) -> None:
        self.ended += 1
        super()._end(worker)


def test_equal_pairs_are_judged_once_within_a_call_and_across_calls():
    with Counting(num_workers=2) as grader:
        for _ in range(3):
            grades = grader.grade([boxed("0.5"), f"So {boxed('0.5')}"] * 8, ["1.5"] * 16)
            assert {grade.verdict for grade in grades} == {"incorrect"}
        assert grader.judged == [("1.5", "0.5")]


def test_an_answer_that_times_out_ends_two_workers_however_often_it_comes_and_is_not_remembered():
    with Counting(num_workers=1, timeout_s=0.5) as grader:
        for ended in (2, 4):
            grades = grader.grade([boxed(STUCK), f"So {boxed(STUCK)}"] * 8, ["5"] * 16)
            assert {grade.verdict for grade in grades} == {"timeout"}
            assert grader.ended == ended
        assert grader.judged == [("5", STUCK)] * 2


class Forgetful(Grader):
    remembered = 10


def test_memory_of_verdicts_is_bounded_and_keeps_what_is_used():
    with Forgetful(num_workers=1) as grader:
        for last in range(20):
            grader.grade([boxed("0.5"), boxed(f"{last}.5")], ["0.5", "0.5"])
        remembered = [prediction for (_, prediction), _ in grader._seen]
    assert len(remembered) == 10
    assert {"0.5", "19.5"} <= set(remembered) and "1.5" not in remembered


# --- limits and losses ---


def test_an_answer_over_the_time_limit_costs_that_limit_and_only_that_answer():
    numbers = [f"{number}.5" for number in range(100)]
    with Grader(num_workers=1, timeout_s=1.5) as grader:
        grader.grade([boxed("1.5")], ["2.5"])
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        grades = grader.grade([*map(boxed, numbers), boxed(STUCK)], [*numbers, "55"])
        end = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the workers that have ended: two, on that answer
        assert 3.0 <= end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime < 15.0
    assert [grade.verdict for grade in grades] == ["correct"] * 100 + ["timeout"]


def workers_on(grader: Grader, prediction: str) -> list[int]:
    """The processes that are judging a prediction now."""
    return [w.process.pid for w in list(grader._workers) if w.ready and w.pairs and w.pairs[0][1] == prediction]


def test_a_worker_that_is_stopped_for_longer_than_the_limit_still_gives_the_right_verdicts():
    numbers = [f"{number}.5" for number in range(40)]
    with Grader(num_workers=2, timeout_s=1.0) as grader:
        wait_until(lambda: all_ready(grader), seconds=120)
        workers = workers_of(grader)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        for worker in workers:
            threading.Timer(2.5, os.kill, (worker, signal.SIGCONT)).start()
        grades = grader.grade([*map(boxed, numbers)], [*numbers[:20], *["0.25"] * 20])
        assert workers_of(grader) == workers  # nobody took them for hung
    assert [grade.verdict for grade in grades] == ["correct"] * 20 + ["incorrect"] * 20


def test_a_worker_that_is_stopped_for_good_is_replaced_and_its_answer_judged():
    with Grader(num_workers=1) as grader:
        wait_until(lambda: all_ready(grader), seconds=120)
        (worker,) = grader._workers
        worker.stall_s = 1.0
        os.kill(worker.process.pid, signal.SIGSTOP)
        assert [grade.verdict for grade in grader.grade([boxed("1.5"), boxed("2.5")], ["1.5", "3.5"])] == [
            "correct",
            "incorrect",
        ]
        assert not alive(worker.process.pid)


def test_a_killed_worker_costs_no_verdict_unless_the_same_answer_kills_twice():
    numbers = [f"{number}.5" for number in range(10, 60)]
    with Grader(num_workers=2, timeout_s=300.0) as grader:
        outcome: list[list[Grade]] = []
        golds = [*numbers, "3"]
        thread = threading.Thread(
            target=lambda: outcome.append(grader.grade([*map(boxed, numbers), boxed(STUCK)], golds))
        )
        thread.start()
        for _ in range(2):
            assert not outcome
            wait_until(lambda: workers_on(grader, STUCK), seconds=120)
            (worker,) = workers_on(grader, STUCK)
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda worker=worker: worker not in workers_of(grader))
        thread.join(120)
        assert [grade.verdict for grade in outcome[0]] == ["correct"] * 50 + ["error"]
        assert grader.grade([boxed("1.5")], ["1.5"])[0].correct


def test_idle_workers_that_die_are_replaced_at_no_cost():
    with Grader(num_workers=2) as grader:
        assert grader.grade([boxed("1.5")] * 2, ["1.5", "2.5"])[0].correct
        workers = workers_of(grader)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, workers)))
        assert [grade.verdict for grade in grader.grade([boxed("3.5")] * 2, ["3.5", "4.5"])] == ["correct", "incorrect"]


def test_workers_that_never_start_are_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Grader() as grader, pytest.raises(RuntimeError, match="do not start"):
        grader.grade([boxed("1.5")], ["1.5"])
    assert not any(map(alive, workers_of(grader)))


HOSTILE = [
    boxed(STUCK),
    boxed(r"10^{10^{10^{10}}}"),
    boxed(r"2^{\frac{1}{9^{9^{9^9}}}}"),
    boxed(r"9^{9^{9}} - 9^{9^{9}} + 5"),
    boxed(r"(10^{9})!"),
    boxed("9!!!!!"),
    boxed(r"\sum_{n=1}^{10^{12}} n^{n}"),
    boxed(r"\sum_{n=1}^{\infty} \frac{\sin(n^n)}{n!}"),
    boxed(r"\int_0^{\infty} e^{-x^{x^{x}}} \sin(x^5) dx"),
    boxed(r"(x+y+z+w+1)^{500}"),
    boxed("(" * 3000 + "5" + ")" * 3000),
    boxed("(" * 400 + "5" + ")" * 400),
    boxed(r"\frac{1}{1+" * 80 + "5" + "}" * 80),
    boxed(r"\frac{1}{" * 30_000 + "5" + "}" * 30_000),
    boxed("7" * 1_000_000),
    boxed("7" * 1000),
    boxed("\0" + "5" * 3 + "\0\ud800"),
    "\0" * 1_000_000,
    r"\boxed{" * 500,
    boxed("{" * 500_000 + "}" * 500_000),
]


@pytest.mark.slow
def test_hostile_answers_harm_neither_the_others_nor_the_pool():
    rng = random.Random(0)
    normal = [(boxed(rf"\frac{{{2 * number}}}{{14}}"), str(rng.choice([number, -number]))) for number in range(1, 2001)]
    pairs = [(completion, rf"\frac{{{gold}}}{{7}}", int(gold) > 0) for completion, gold in normal]
    pairs += [(completion, "5", None) for completion in HOSTILE]
    rng.shuffle(pairs)
    memory_gb, peaks, done = 1.0, {}, threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for pid in workers_of(grader):
                with suppress(FileNotFoundError, ProcessLookupError, IndexError):  # it has ended, or is about to
                    peaks[pid] = int(Path(f"/proc/{pid}/status").read_text().split("VmPeak:")[1].split()[0]) / 2**20

    assert len(HOSTILE) == 20
    with Grader(num_workers=2, timeout_s=2.0, memory_gb=memory_gb) as grader:
        watcher = threading.Thread(target=watch)
        watcher.start()
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        grades = grader.grade([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        done.set()
        watcher.join()
        assert grader.grade([boxed("8.5")], ["8.5"])[0].correct
    end = resource.getrusage(resource.RUSAGE_CHILDREN)  # of all its workers, which have ended
    used = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    for (completion, _, right), grade in zip(pairs, grades, strict=True):
        if right is None:
            assert not grade.correct, completion[:100]
        else:
            assert grade.verdict == ("correct" if right else "incorrect")
    assert used < 200.0  # 2,000 answers, and at most two tries and two new workers for each of the 20
    assert 0 < max(peaks.values()) <= memory_gb
    timeouts = sum(grade.verdict == "timeout" for grade in grades)
    peak = max(peaks.values())
    print(f"\n{used:.1f} s of processor time, {timeouts} ran into the limit, {len(peaks)} workers, peak {peak:.2f} GiB")


def test_memory_beyond_the_limit_is_not_given():
    hungry = r"2^{2^{33}} + x"  # an integer of 1 GiB
    with Grader(num_workers=1, timeout_s=10.0, memory_gb=0.25) as grader:
        hungry_grade, modest_grade = grader.grade([boxed(hungry), boxed("6.5")], ["5.5", "6.5"])
        assert not hungry_grade.correct and modest_grade.correct


# --- life and death of the workers ---


def test_no_worker_is_left_after_success_or_failure():
    with Grader(num_workers=3) as grader:
        grader.grade([boxed("1.5")], ["1.5"])
        workers = workers_of(grader)
    assert len(workers) == 3 and not any(map(alive, workers))
    with pytest.raises(ZeroDivisionError), Grader(num_workers=2) as grader:
        workers = workers_of(grader)
        raise ZeroDivisionError
    assert len(workers) == 2 and not any(map(alive, workers))


def test_an_interrupted_call_leaves_nothing_behind_for_the_next():
    with Grader(num_workers=2, timeout_s=300.0) as grader:
        assert grader.grade([boxed("1.5")], ["1.5"])[0].correct
        threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            grader.grade([boxed(STUCK), boxed("8.5")], ["5.5", "8.5"])
        assert [grade.verdict for grade in grader.grade([boxed("9.5"), boxed("7.5")], ["9.5", "8.5"])] == [
            "correct",
            "incorrect",
        ]


PARENT = textwrap.dedent(
    r"""
    import sys, time
    from lens.grading import Grader

    with Grader(num_workers=2, timeout_s=300.0) as grader:
        print(grader.grade([r"\boxed{2.5}", r"\boxed{4.5}"], ["2.5", "3.5"])[0].verdict)
        try:
            print(*[worker.process.pid for worker in grader._workers], flush=True)
            if sys.argv[1] == "busy":
                grader.grade([r"\boxed{9^{9^{9^9}}}", r"\boxed{8^{9^{9^9}}}"], ["5", "6"])
            time.sleep(300)
        except KeyboardInterrupt:
            left = [worker for worker in grader._workers if worker.process.poll() is None]
            print(len(left), grader.grade([r"\boxed{1.5}"], ["1.5"])[0].verdict, flush=True)
    """
)


def start_parent(script: Path, state: str) -> tuple[subprocess.Popen, list[int]]:
    script.write_text(PARENT)
    command = [sys.executable, str(script), state]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout.readline() == "correct\n"
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2 and all(map(alive, workers))
    wait_until(lambda: all(map(ignores_ctrl_c, workers)))  # the slower one may still be starting
    if state == "busy":
        for worker in workers:
            wait_until_stuck(worker)
    return parent, workers


@pytest.mark.parametrize("state", ["idle", "busy"])
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_a_killed_parent(tmp_path: Path, state: str, signal_number: signal.Signals):
    parent, workers = start_parent(tmp_path / "parent.py", state)
    parent.send_signal(signal_number)
    parent.communicate()
    wait_until(lambda: not any(map(alive, workers)), seconds=5)


@pytest.mark.parametrize(("state", "workers_left"), [("idle", 2), ("busy", 0)])
def test_ctrl_c_is_left_to_the_parent(tmp_path: Path, state: str, workers_left: int):
    parent, workers = start_parent(tmp_path / "parent.py", state)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to the parent and its workers
    output, _ = parent.communicate(timeout=60)
    assert output == f"{workers_left} correct\n" and parent.returncode == 0
    wait_until(lambda: not any(map(alive, workers)), seconds=5)


GRADE_ONE = r'from lens.grading import Grader; print(Grader().__enter__().grade([r"\boxed{5.5}"], ["5.5"])[0].verdict)'


def test_workers_start_under_any_parent(tmp_path: Path):
    script = tmp_path / "no_main_guard.py"
    script.write_text(GRADE_ONE)
    for command in ([sys.executable, str(script)], [sys.executable, "-c", GRADE_ONE], [sys.executable, "-"]):
        done = subprocess.run(command, input=GRADE_ONE, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert (done.stdout, done.returncode) == ("correct\n", 0), done.stderr


def grade_in_a_job(number: int) -> str:
    with Grader(num_workers=1) as grader:
        return grader.grade([boxed(f"{number}.5")], ["1.5"])[0].verdict


def test_workers_start_in_processes_of_a_pool():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(grade_in_a_job, (0, 1))) == ["incorrect", "correct"]


def test_neither_parent_nor_workers_load_what_they_do_not_need(grader: Grader):
    check = "import sys, lens.grading; print({'torch', 'sympy', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout == "set()\n"
    grader.grade([boxed("1.5")], ["1.5"])
    for worker in workers_of(grader):
        assert "libtorch" not in Path(f"/proc/{worker}/maps").read_text()


# --- speed ---

FORMS = [r"\frac{%d}{%d}", r"%d\sqrt{%d}", "(%d,%d)", "x^2+%dx-%d", r"\{%d,%d\}", "y=%dx+%d", "[%d,%d)", "%d+%di"]


def benchmark(num_pairs: int, repeats: int) -> dict[str, float]:
    """Time a warm pool against math-verify in this process, without a cache but with the same settings.

    ``ratio`` compares wall-clock times, which only means something while the machine has nothing else to do.
    ``cpu_ratio`` compares the processor time of this process with that of the busiest worker, busy machine or not.
    """
    import math_verify

    boxes = [math_verify.LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)]
    rng = random.Random(0)
    answers = [rng.choice(FORMS) % (rng.randint(2, 99), rng.randint(100, 999)) for _ in range(2 * num_pairs // repeats)]
    golds = answers[::2] * repeats
    completions = [boxed(answer) for answer in answers[1::2]] * repeats
    with Grader(num_workers=2) as grader:
        grader.grade([boxed("1.5")] * 2, ["7.5", "8.5"])
        workers = workers_of(grader)
        start, start_cpu = time.perf_counter(), [cpu_seconds(pid) for pid in workers]
        grader.grade(completions, golds)
        pool = time.perf_counter() - start
        pool_cpu = max(cpu_seconds(pid) - before for pid, before in zip(workers, start_cpu, strict=True))
    judge("1", "2")
    start, start_cpu = time.perf_counter(), time.process_time()
    for gold, completion in zip(golds, completions, strict=True):
        readings = [math_verify.parse(text, boxes, parsing_timeout=None) for text in (boxed(gold), completion)]
        math_verify.verify(*readings, timeout_seconds=None)
    alone, alone_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return {"alone_s": alone, "pool_s": pool, "ratio": alone / pool, "cpu_ratio": alone_cpu / pool_cpu}


@pytest.mark.slow
def test_repeats_and_parsed_golds_are_not_paid_for_again():
    times = benchmark(num_pairs=480, repeats=4)
    print("\n" + "  ".join(f"{name} {value:.2f}" for name, value in times.items()))
    assert times["cpu_ratio"] >= 2.5


if __name__ == "__main__":
    for repeats in (1, 4):
        print(repeats, *(f"{name} {value:.2f}" for name, value in benchmark(num_pairs=2000, repeats=repeats).items()))
