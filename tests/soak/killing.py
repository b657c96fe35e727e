"""Kills a run again and again, and compares its end with that of a run that nobody disturbed."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import threading
import time
import traceback
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.campaigns import MAX_STEPS, Campaign
from tests.soak.disk import fill, small_disk
from tests.support.command_line import (
    Command,
    Result,
    assert_one_wandb_run,
    assert_same_end,
    environment,
    steps_in,
)
from tests.support.watching import PHASES, Watch

PATIENCE_S = 600.0  # after a kill every process of the run has to end, and a run whose disk is full as well


@dataclass
class Attempt:
    """One start of a run, and what happens to it.

    Attributes:
        folder: the run folder.
        aim: where to kill it: at a "moment", in one of PHASES, before a "write", or "none": leave it alone.
        after: CPU seconds of the first process until the kill: from the start, or from the aimed phase's beginning.
        what, nth: the write to kill at, and the how manieth of its kind; or the how manieth beginning of the phase.
        until: CPU seconds after which it is killed anyway.
        who: "machine" kills every process at once, "first" and "second" one process of the run.
        full_at: the number of the write before which the disk becomes full; None: never.
        left: bytes that are then left.
        kill, full: what was killed, and where the disk became full; None: it did not happen.
        early_writes: how many writes there were before training began.
    """

    folder: Path
    aim: str = "none"
    after: float = 0.0
    what: str = ""
    nth: int = 0
    until: float = math.inf
    who: str = "machine"
    full_at: int | None = None
    left: int = 0
    kill: dict[str, Any] | None = field(default=None, init=False)
    full: dict[str, Any] | None = field(default=None, init=False)
    early_writes: int = field(default=0, init=False)
    lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    started: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self, command: list[object], processes: int, home: Path) -> Result:
        """Start the run, do to it what is planned, and wait for its end."""
        self.watch = Watch(self.folder, self._on_write)
        env = environment(WATCHED_BY=self.watch.address, TMPDIR=str(home))
        self.command = Command(*command, f"hydra.run.dir={self.folder}", folder=home, processes=processes, env=env)
        self.started.set()
        try:
            self._kill_in_time()
            return self.command.wait()
        finally:
            if self.command.is_running():
                kill_all(self.command.process.pid)

    def cpu_seconds(self) -> float:
        """The CPU time of the first process. A busy machine does not change what a run has done after so much."""
        try:
            return time.clock_gettime((~self.command.process.pid << 3) | 2)
        except OSError:  # it has ended
            return math.inf

    def _kill_in_time(self) -> None:
        """Wait for the aimed moment, and kill then."""
        due, begun = self.until, self.aim == "moment"
        while self.command.is_running() and not self.kill:
            if math.isinf(now := self.cpu_seconds()):
                break  # it has ended by itself, and what is left of it cannot be killed
            if not begun and self.aim in PHASES and self.watch.entered(self.aim) >= self.nth:
                begun, due = True, now + self.after
            elif self.aim == "moment":
                due = self.after
            if now >= due:
                self._kill(self.aim if begun else "moment")
            time.sleep(0.001)

    def _on_write(self, what: str, nth: int, thread: int) -> bool:
        """Fill the disk or kill before a write, if that is planned; return whether the write may happen."""
        self.started.wait()
        if self.watch.phase == "starting":
            self.early_writes = self.watch.writes
        if self.watch.writes == self.full_at:
            self.full = {"write": what, "left": self.left, "phase": self.watch.phase}
            fill(self.folder.parent, self.left)
        if self.aim == "write" and (what, nth) == (self.what, self.nth):
            writer = find_process(thread)
            return writer not in self._kill("write", what)
        return True

    def _kill(self, aim: str, write: str | None = None) -> list[int]:
        """Kill the run, once, and return the processes that were killed."""
        with self.lock:
            if self.kill or not self.command.is_running():
                return []
            second = self.watch.second if self.who == "second" else 0
            who = self.who if second or self.who != "second" else "first"
            phase, step = self.watch.phase, steps_in(self.folder)
            self.kill = {"aim": aim, "who": who, "phase": phase, "step": step, "write": write}
        if who == "machine":
            return kill_all(self.command.process.pid)
        try:
            os.kill(second or self.command.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended by itself just now
            self.kill = None
            return []
        return [second or self.command.process.pid]


def find_process(thread: int) -> int:
    """The process of a thread; 0 if it has ended."""
    try:
        status = Path(f"/proc/{thread}/status").read_text()
    except OSError:
        return 0
    return int(status.partition("Tgid:")[2].split()[0])


def kill_all(pid: int) -> list[int]:
    """Kill a process and all below it, and return them."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below = [pid]
    for parent in below:
        below += [child for child, its in parents.items() if its == parent]
    for process in below:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return below


# --- campaigns -------------------------------------------------------------------------------------------------------


def make_reference(campaign: Campaign, command: list[object], home: Path) -> dict[str, Any]:
    """The undisturbed run of a configuration, made once: what it takes. It lies in the folder ``run``."""
    file, attempt = home / "facts.json", Attempt(home / "run")
    if file.exists():
        return json.loads(file.read_text())
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    result = attempt.run([*command, f"trainer.max_steps={MAX_STEPS}"], campaign.processes, home)
    assert result.code == 0, result.stderr
    watch = attempt.watch
    assert watch.ended(PATIENCE_S), "processes are left over"
    facts = {
        "start": watch.start,  # CPU seconds
        "loop": watch.seconds("between"),
        "phases": {name: watch.seconds(name) / max(1, watch.entered(name)) for name in PHASES},
        "early_writes": attempt.early_writes,
        "writes": watch.writes,
        "seen": watch.seen,
    }
    file.write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def plan_attempt(campaign: Campaign, folder: Path, facts: dict[str, Any], kills_left: int, done: Counter) -> Attempt:
    """What is to happen to the next start of a run; the more kills are left, the earlier.

    Args:
        campaign: the run.
        folder: its folder.
        facts: what `make_reference` found.
        kills_left: how many kills it is to get, this one included.
        done: how often each kind of write was killed so far. Those that were killed least come first.
    """
    rng, start, loop = campaign.random, facts["start"], facts["loop"]
    saved = max((int(path.name[5:]) for path in folder.glob("checkpoints/step_??????")), default=0)
    share = (1 - saved / MAX_STEPS) * min(1, 2 / (kills_left + 1))
    until = start + share * loop * 1.5 if kills_left > 1 else math.inf
    chosen = {
        "until": until,
        "who": rng.choice(["machine", "first"] if campaign.processes == 1 else ["machine", "first", "second"]),
    }
    if campaign.disk and rng.random() < 1 / 3:
        writes = facts["early_writes"] + round(share * (facts["writes"] - facts["early_writes"]))
        chosen |= {"full_at": rng.randint(1, writes), "left": rng.choice([0, rng.randrange(1_500_000)])}
        chosen["until"] = rng.choice([until, math.inf])  # killed while the disk is full, or left to end by itself
        return Attempt(folder, **chosen)
    aim = rng.choices(["moment", "write", "phase"], [3, 4, 3])[0]
    if aim == "moment":
        return Attempt(folder, aim, after=rng.uniform(0, start + share * loop), **chosen)
    if aim == "write":
        possible = {
            what: count for what, (count, phase) in facts["seen"].items() if phase != "ending" or kills_left == 1
        }
        least = min(done[what] for what in possible)
        what = rng.choice([what for what in possible if done[what] == least])
        return Attempt(folder, aim, what=what, nth=rng.randint(1, max(1, round(share * possible[what]))), **chosen)
    phase = rng.choice([name for name in PHASES if name != "ending" or kills_left == 1])
    length = start if phase == "starting" else facts["phases"][phase]
    often = phase in ("sampling", "grading", "updating")
    return Attempt(folder, phase, nth=rng.randint(1, 3) if often else 1, after=rng.uniform(0, length), **chosen)


def run_campaign(campaign: Campaign, home: Path, kills: int, done: Counter) -> dict[str, Any]:
    """Run a campaign of so many kills at most, and return its line of the ledger, with the difference found, or None.

    Only the folder of a run that ends differently is kept. ``done`` is that of `plan_attempt`.
    """
    started, folder = time.monotonic(), home / "campaigns" / f"{campaign.number:04d}"
    line = {**campaign.axes(), "campaign": campaign.number, "kills": [], "full": [], "writes": [], "difference": None}
    reference = home / "references" / campaign.configuration
    command = campaign.command(home / "pupil", home / "unused")
    if (folder / "disk").is_mount():  # a soak that was killed left it
        subprocess.run(["umount", "-l", folder / "disk"], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    facts = make_reference(campaign, command, reference)
    with small_disk(folder / "disk") if campaign.disk else nullcontext(folder / "whole"):
        run_folder = folder / ("disk" if campaign.disk else "whole") / "run"
        try:
            disturb(campaign, command, run_folder, facts, kills, line, done)
            assert_same_end(run_folder, reference / "run")
            assert_one_wandb_run(run_folder)
            assert not list(run_folder.rglob("*.unfinished"))
        except Exception:
            line["difference"] = traceback.format_exc()
            if campaign.disk:
                shutil.copytree(run_folder, folder / "run")
    if line["difference"] is None:
        shutil.rmtree(folder)
    return line | {"seconds": round(time.monotonic() - started, 1)}


def disturb(
    campaign: Campaign,
    command: list[object],
    folder: Path,
    facts: dict[str, Any],
    kills: int,
    line: dict[str, Any],
    done: Counter,
) -> None:
    """Start a run, and start it again whenever it was killed or its disk was full, until it has reached its end."""
    watches, home = [], folder.parent.parent
    for max_steps in campaign.stages:
        code = None
        while code != 0:
            left = kills - len(line["kills"])
            attempt = plan_attempt(campaign, folder, facts, left, done) if left else Attempt(folder)
            result = attempt.run([*command, f"trainer.max_steps={max_steps}"], campaign.processes, home)
            watches.append(attempt.watch)
            code = result.code
            (folder.parent / "filler").unlink(missing_ok=True)
            if attempt.kill and code != 0:  # else it had ended by itself just before
                line["kills"].append(attempt.kill)
                done[attempt.kill["write"]] += 1
            if attempt.full:
                line["full"].append(attempt.full | {"code": code})
            assert code == 0 or attempt.kill or attempt.full, f"exit code {code}: {result.stderr}"
    for watch in watches:
        assert watch.ended(PATIENCE_S), f"processes of the run are left over: {watch.left()}"
    line["writes"] = sorted({what for watch in watches for what in watch.seen})
