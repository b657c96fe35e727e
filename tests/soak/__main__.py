"""Kills tiny training runs a thousand times: ``make kill-soak``.

It can be stopped at any time, and the same command goes on with it. Finished campaigns stand in
outputs/kill-soak/<code and machine>/campaigns.jsonl. The exit code is 1 if a run ended differently; its folder stays.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import itertools
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from lens.errors import INTERRUPTED
from tests.soak import ledger
from tests.soak.campaigns import KILLS, deal
from tests.soak.disk import can_mount
from tests.soak.killing import run_campaign
from tests.support.command_line import ROOT, make_pupil
from tests.support.watching import can_watch


def main() -> int:
    """Run campaigns until there were enough kills, or print the tables of those that were run."""
    options = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    options.add_argument("--kills", type=int, default=1000, help="how many kills in all")
    options.add_argument("--seed", type=int, default=0, help="decides which runs are killed, and when")
    options.add_argument("--folder", type=Path, default=ROOT / "outputs" / "kill-soak", help="where everything is kept")
    options.add_argument("--table", action="store_true", help="print the tables of the last soak and do nothing else")
    chosen = options.parse_args()
    if chosen.table:
        files = sorted(chosen.folder.glob("*/campaigns.jsonl"), key=lambda file: file.stat().st_mtime)
        if not files:
            print(f"error: --table: there is no soak in {chosen.folder}; make kill-soak runs one", file=sys.stderr)
            return 2
        print(ledger.tables(ledger.read(files[-1])))
        return 0
    try:
        return soak(chosen.folder / ledger.name_state(), chosen.kills, chosen.seed)
    except KeyboardInterrupt:
        print("stopped: the same command goes on after the last finished run", file=sys.stderr)
        return INTERRUPTED


def soak(home: Path, kills: int, seed: int) -> int:
    """Run the campaigns that are missing, and return the exit code."""
    home.mkdir(parents=True, exist_ok=True)
    lock = (home / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"error: another soak runs in {home}", file=sys.stderr)
        return 2
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    file = home / "campaigns.jsonl"
    print(f"{kills} kills, seed {seed}, ledger {file}", flush=True)
    if reason := find_reason_against(home):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    with_vllm = importlib.util.find_spec("vllm") is not None
    if not with_vllm:
        print("vLLM is not installed, so its runs are left out: make setup VLLM=cpu")
    if not (home / "pupil").exists():
        with tempfile.TemporaryDirectory(dir=home) as unfinished:
            make_pupil(Path(unfinished)).rename(home / "pupil")
    for number in itertools.count():
        lines = ledger.read(file, seed)
        done = ledger.count_kills(lines)
        if done >= kills:
            break
        campaign = deal(seed, number)
        if number in {line["campaign"] for line in lines} or (campaign.sampler == "vllm" and not with_vllm):
            continue
        killed = Counter(kill["write"] for line in lines for kill in line["kills"])
        line = run_campaign(campaign, home, min(KILLS[campaign.sampler], kills - done), killed)
        ledger.add(file, {"commit": home.name, "seed": seed, **line})
        tell(done, kills, campaign.configuration, line)
        if line["difference"]:
            folder = home / "campaigns" / f"{number:04d}"
            print(
                f"{line['difference']}\nfailed: run {number} ended differently; it is kept in {folder}", file=sys.stderr
            )
            return 1
    print(f"\n{ledger.tables(lines)}")
    return int(any(line["difference"] for line in lines))


def find_reason_against(home: Path) -> str | None:
    """Why this machine cannot run a soak; None: it can."""
    if not can_watch():
        return "to stop a run at its writes needs Linux on x86-64"
    if not can_mount(home / "disk"):
        return "a disk that is full needs the right to mount a small file system (run it as root)"
    return None


def tell(done: int, kills: int, configuration: str, line: ledger.Line) -> None:
    """Print what happened in a campaign."""
    where = Counter((kill["write"] and "a write") or kill["phase"] for kill in line["kills"])
    counts = ", ".join(f"{name} {count}" for name, count in sorted(where.items()))
    more = f", disk full {len(line['full'])}" if line["full"] else ""
    end = "another end" if line["difference"] else "the same end"
    steps = "+".join(map(str, line["stages"]))
    told = f"{done + len(line['kills'])}/{kills} run {line['campaign']} {configuration} to {steps}"
    print(f"{told}: {end} after {len(line['kills'])} kills ({counts}){more}, {line['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
