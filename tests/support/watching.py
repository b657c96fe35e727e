"""Watches a command from outside: it is stopped at each write below a folder, and tells which phase it is in.

The kernel does the watching (seccomp with a listener). Before a system call that changes a file is carried out, it is
reported to a `Watch`, which lets it happen, kills the command there, or fills the disk first. This covers what Python,
C++, Rust and W&B's own process write. It works on Linux on x86-64, from version 5.5 on.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import importlib
import mmap
import os
import platform
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from lens.distributed.processes import end_with_parent

# Phases of a run, and the functions that they are. A command starts in the first; of nested ones the inner one counts.
PHASES = {
    "starting": None,
    "between": "lens.training.trainer:Trainer.run",
    "sampling": "lens.training.collecting:Collector.collect",
    "grading": "lens.training.collecting:grade_groups",
    "updating": "lens.training.trainer:Trainer._update",
    "evaluating": "lens.training.trainer:Trainer._evaluate",
    "saving": "lens.training.trainer:Trainer._save",
    "ending": "lens.runs.tracker:Tracker.finish",
}

# x86-64 system calls that change files: number, name, and which argument names the file: by "fd", by "path", or by
# "at", a folder's descriptor with a path after it.
CALLS = {
    1: ("write", "fd", 0),
    18: ("pwrite", "fd", 0),
    20: ("writev", "fd", 0),
    296: ("pwritev", "fd", 0),
    328: ("pwritev", "fd", 0),
    40: ("sendfile", "fd", 0),
    326: ("copy", "fd", 2),
    74: ("fsync", "fd", 0),
    75: ("fsync", "fd", 0),
    77: ("truncate", "fd", 0),
    76: ("truncate", "path", 0),
    2: ("open", "path", 0),
    257: ("open", "at", 0),
    85: ("open", "path", 0),
    82: ("rename", "path", 1),
    264: ("rename", "at", 2),
    316: ("rename", "at", 2),
    83: ("mkdir", "path", 0),
    258: ("mkdir", "at", 0),
    84: ("remove", "path", 0),
    87: ("remove", "path", 0),
    263: ("remove", "at", 0),
}
WRITEV = 20  # gloo sends with it as well, a notice for each packet, which makes two processes ten times as slow
OPEN_FLAGS = {2: 1, 257: 2}  # the place of the flags among the arguments of these two
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
ENDING = len(PHASES) - 1  # also the phase after training
SECOND, START = -1, -2  # places of the second process's number, and of the CPU seconds until training began
DESCRIPTORS = (1, 18, 20)  # calls that write to standard output and error as well

# <linux/seccomp.h>, <linux/filter.h>, <sys/prctl.h>
SECCOMP, SET_MODE_FILTER, NEW_LISTENER, NO_NEW_PRIVS = 317, 1, 8, 38
ALLOW, NOTIFY, ARCH_X86_64 = 0x7FFF0000, 0x7FC00000, 0xC000003E
LOAD, IF_EQUAL, IF_ABOVE, IF_ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
RECEIVE, SEND, CONTINUE = 0xC0502100, 0xC0182101, 1
NOTICE = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, number, architecture, instruction, arguments
ANSWER = struct.Struct("=QqiI")  # id, value, error, flags


def can_watch() -> bool:
    """Whether this machine can stop a command at its writes."""
    return platform.system() == "Linux" and platform.machine() == "x86_64"


# --- in the command --------------------------------------------------------------------------------------------------


def be_watched(address: str, *, alone: bool) -> None:
    """Have this process, and all that it starts, watched by the `Watch` at an address from now on.

    Processes that are not ``alone`` are not stopped at writev: of a run's files it writes the tensors of a training
    state, whose file is stopped at before and after.

    This process ends with its parent: without an answer from the watch, its writes would fail.
    """
    end_with_parent()
    memory = os.memfd_create("phase")
    os.ftruncate(memory, mmap.PAGESIZE)
    mark_phases(np.frombuffer(mmap.mmap(memory, mmap.PAGESIZE)))
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(f"\0{address}")
        listener = install_filter(set(CALLS) - (set() if alone else {WRITEV}))
        socket.send_fds(there, [b"!"], [listener, memory])
    os.close(listener)
    os.close(memory)


def install_filter(calls: Collection[int]) -> int:
    """Have the kernel report some of the CALLS of this process; return the descriptor that tells of them."""
    code = [(LOAD, 0, 0, 4), (IF_EQUAL, 1, 0, ARCH_X86_64), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, 0)]
    for number in calls:
        if number in OPEN_FLAGS:
            place = 16 + 8 * OPEN_FLAGS[number]
            test = [(LOAD, 0, 0, place), (IF_ANY_BIT, 0, 1, CHANGES), (RETURN, 0, 0, NOTIFY), (RETURN, 0, 0, ALLOW)]
        elif number in DESCRIPTORS:
            test = [(LOAD, 0, 0, 16), (IF_ABOVE, 0, 1, 2), (RETURN, 0, 0, NOTIFY), (RETURN, 0, 0, ALLOW)]
        else:
            test = [(RETURN, 0, 0, NOTIFY)]
        code += [(IF_EQUAL, 0, len(test), number), *test]
    code += [(RETURN, 0, 0, ALLOW)]
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(instructions)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = libc.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER, program)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "this machine does not let a process be watched by seccomp")
    return listener


def mark_phases(state: np.ndarray) -> None:
    """Keep in an array the phase, how often each was entered, the CPU seconds in each, and at its end other values."""
    for number, place in enumerate(PHASES.values()):
        if place is None:
            continue
        module, name = place.split(":")
        *owners, name = name.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, name, marked(getattr(owner, name), number, state))


def marked(function: Callable, number: int, state: np.ndarray) -> Callable:
    """A function that marks its phase while the first process is in it."""
    entered, seconds = 1 + number, 1 + len(PHASES) + number

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        if os.environ.get("RANK", "0") != "0":
            state[SECOND] = os.getpid()
            return function(*arguments, **options)
        outer, started = state[0], time.process_time()
        state[START] = state[START] or started
        state[0] = number
        state[entered] += 1
        try:
            return function(*arguments, **options)
        finally:
            state[0] = outer or ENDING
            state[seconds] += time.process_time() - started

    return run


# --- outside ---------------------------------------------------------------------------------------------------------


class Watch:
    """The other side of `be_watched`: it lets each write below a folder happen, after `on_write` has seen it.

    Args:
        folder: the folder whose writes count.
        on_write: called before a write happens, with what it is, how often such a one has come, and the thread's
            number. If it returns False, the write never happens: it has to kill the thread.

    Attributes:
        address: for `be_watched`.
        writes: how many writes were seen.
        seen: what they were, how often, and the phase in which each came first.
    """

    numbers = iter(range(10**9))

    def __init__(self, folder: Path, on_write: Callable[[str, int, int], bool]):
        self.folder, self.on_write = str(folder), on_write
        self.address = f"lens-soak-{os.getpid()}-{next(self.numbers)}"
        self.writes, self.seen, self.state = 0, {}, np.zeros(mmap.PAGESIZE // 8)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(f"\0{self.address}")
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def phase(self) -> str:
        """The phase that the first process is in."""
        return list(PHASES)[int(self.state[0])]

    def entered(self, phase: str) -> int:
        """How often a phase has begun."""
        return int(self.state[1 + list(PHASES).index(phase)])

    def seconds(self, phase: str) -> float:
        """The CPU seconds that the first process has spent in a phase."""
        return float(self.state[1 + len(PHASES) + list(PHASES).index(phase)])

    @property
    def second(self) -> int:
        """The number of the second process; 0 while it has entered no phase, or where there is none."""
        return int(self.state[SECOND])

    @property
    def start(self) -> float:
        """The CPU seconds of the first process until training began."""
        return float(self.state[START])

    def ended(self, timeout_s: float) -> bool:
        """Wait until no watched process is left; False if one still is."""
        with contextlib.suppress(OSError):  # nobody waits any more
            self._socket.shutdown(socket.SHUT_RDWR)  # closing alone would leave a thread in accept for ever
        self._socket.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def left(self) -> list[str]:
        """The processes that were given the address, and those that have ended and wait for a parent."""
        found = []
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                state = re.search(r"State:\t(.)", status.read_text())[1]
                mine = f"WATCHED_BY={self.address}\0" in (status.parent / "environ").read_text(errors="replace")
                if mine or state == "Z":
                    found.append(f"{status.parent.name} {state} {(status.parent / 'comm').read_text().strip()}")
            except OSError:
                continue
        return found

    def _serve(self) -> None:
        """Answer the kernel until no watched process is left."""
        try:
            there, _ = self._socket.accept()
        except OSError:  # the command ended before it was watched
            return
        with there:
            _, (listener, memory), _, _ = socket.recv_fds(there, 1, 2)
        self.state = np.frombuffer(mmap.mmap(memory, mmap.PAGESIZE))
        os.close(memory)
        events = select.poll()
        events.register(listener, select.POLLIN)
        try:
            while not events.poll()[0][1] & select.POLLHUP:
                self._answer(listener)
        finally:
            os.close(listener)  # whoever still waits for an answer gets an error

    def _answer(self, listener: int) -> None:
        """Answer one notice."""
        notice = bytearray(NOTICE.size)
        try:
            fcntl.ioctl(listener, RECEIVE, notice)
            identity, pid, _, number, _, _, *arguments = NOTICE.unpack(notice)
            if self._may_happen(pid, number, arguments):
                fcntl.ioctl(listener, SEND, bytearray(ANSWER.pack(identity, 0, 0, CONTINUE)))
        except FileNotFoundError:  # the process has been killed meanwhile
            return

    def _may_happen(self, pid: int, number: int, arguments: list[int]) -> bool:
        name, *where = CALLS[number]
        path = find_path(pid, *where, arguments)
        if not path.startswith(f"{self.folder}/"):
            return True
        what = f"{name} {simplify(path.removeprefix(f'{self.folder}/'))}"
        self.writes += 1
        count, phase = self.seen.get(what, (0, self.phase))
        self.seen[what] = count + 1, phase
        return self.on_write(what, count + 1, pid)


def find_path(pid: int, kind: str, place: int, arguments: list[int]) -> str:
    """The file that a call of a process is about; an empty string if the process is gone."""
    try:
        if kind == "fd":
            return os.readlink(f"/proc/{pid}/fd/{arguments[place]}")
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(arguments[place + (kind == "at")])
            path = os.fsdecode(memory.read(4096).partition(b"\0")[0])
        if os.path.isabs(path):
            return path
        descriptor = ctypes.c_int(arguments[place]).value if kind == "at" else -1
        return os.path.join(os.readlink(f"/proc/{pid}/" + (f"fd/{descriptor}" if descriptor >= 0 else "cwd")), path)
    except OSError:
        return ""


def simplify(path: str) -> str:
    """A path with * for numbers and hashes, so that the same write of another step or run has the same name."""
    return re.sub(r"(?<=\.tmp)\w{6}$|[0-9a-f]{8,}|\d+", "*", path)
