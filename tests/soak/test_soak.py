"""The soak itself: what it deals, that it kills where it says, and that it finds an end that differs."""

from __future__ import annotations

import itertools
import json
import math
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.soak import ledger
from tests.soak.__main__ import find_reason_against, soak
from tests.soak.campaigns import CARDS, deal
from tests.support.command_line import Command, environment
from tests.support.watching import Watch, can_watch

watched = pytest.mark.skipif(not can_watch(), reason="a command is stopped at its writes on Linux on x86-64 alone")

SCRIPT = """
import os, pathlib, subprocess, sys
folder = pathlib.Path(sys.argv[1])
(folder / "a").write_text("a")
subprocess.run(["cp", folder / "a", folder / "step_12.tmp"], check=True)
os.rename(folder / "step_12.tmp", folder / "b")
"""


@watched
@pytest.mark.parametrize("kill", [True, False])
def test_a_command_and_its_children_are_stopped_before_a_write_happens(tmp_path, kill):
    folder, script, seen = tmp_path / "run", tmp_path / "script.py", []
    folder.mkdir()
    script.write_text(SCRIPT)

    def on_write(what: str, nth: int, thread: int) -> bool:
        seen.append((what, nth))
        if kill and what == "rename b":
            running.signal(signal.SIGKILL)
            return False
        return True

    watch = Watch(folder, on_write)
    running = Command(script, folder, folder=tmp_path / "logs", env=environment(WATCHED_BY=watch.address))
    result = running.wait()
    assert watch.ended(60)
    assert result.code == (-signal.SIGKILL if kill else 0), result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["a", "step_12.tmp" if kill else "b"]
    first = [what for what, _ in seen]
    assert first[:2] == ["open a", "write a"]
    assert "open step_*.tmp" in first  # by cp
    assert seen[-1] == ("rename b", 1)
    assert watch.phase == "starting"


def test_a_command_that_was_killed_before_it_was_watched_leaves_nobody_waiting(tmp_path):
    watch = Watch(tmp_path, lambda what, nth, thread: True)
    time.sleep(0.1)  # until it waits for the command
    assert watch.ended(10)


def test_every_axis_gets_its_share_and_a_seed_deals_the_same_again():
    passes = math.lcm(*map(len, CARDS.values()))
    dealt = [deal(3, number) for number in range(passes)]
    for axis in ("adapters", "updates", "disk", "stages"):
        found = Counter(getattr(campaign, axis) for campaign in dealt)
        shares = Counter(CARDS[axis])
        assert found == {card: count * passes // len(CARDS[axis]) for card, count in shares.items()}
    engines = Counter((campaign.sampler, campaign.processes) for campaign in dealt)
    assert engines == {card: passes // len(CARDS["engine"]) * n for card, n in Counter(CARDS["engine"]).items()}
    assert [c.axes() for c in dealt] == [deal(3, number).axes() for number in range(passes)]
    assert [c.axes() for c in dealt] != [deal(4, number).axes() for number in range(passes)]
    assert [c.random.random() for c in dealt[:5]] == [deal(3, number).random.random() for number in range(5)]


def line(number: int, **changes) -> ledger.Line:
    kill = {"aim": "write", "who": "machine", "phase": "saving", "step": 2, "write": "rename summary.json"}
    moment = kill | {"aim": "moment", "phase": "starting", "write": None}
    values = {"campaign": number, "commit": "abc", "seed": 0, "seconds": 1800, "kills": [kill, moment], "full": []}
    values |= {"writes": ["rename summary.json", "write metrics.jsonl"], "difference": None}
    return values | deal(0, number).axes() | changes


def test_half_a_line_counts_for_nothing_and_is_cut_off(tmp_path):
    file = tmp_path / "campaigns.jsonl"
    assert ledger.read(file) == []
    ledger.add(file, line(0))
    file.write_text(file.read_text() + json.dumps(line(1))[:40])
    assert [kept["campaign"] for kept in ledger.read(file)] == [0]
    ledger.add(file, line(2, seed=1))
    assert [kept["campaign"] for kept in ledger.read(file)] == [0, 2]
    assert [kept["campaign"] for kept in ledger.read(file, seed=1)] == [2]


def test_the_table_counts_kills_and_ends():
    lines = [line(0, sampler="vllm", processes=1), line(1, sampler="transformers", processes=2, difference="other")]
    found = ledger.tables(lines).splitlines()
    assert found[0].startswith("Commit abc, seed 0: 4 kills in 2 runs, 0 times a full disk; 1.0 hours.")
    for row in (
        "| all | 2 | 4 | 1 |",
        "| one process, vLLM | 1 | 2 | 1 |",
        "| two processes, transformers | 1 | 2 | 0 |",
        "| two processes, vLLM | 0 | 0 | 0 |",
        "| before a write | 2 |",
        "| starting | 2 |",
    ):
        assert row in found
    assert found[-1] == "Of 2 kinds of write in the run folder, 1 were killed before they happened."


@pytest.mark.slow
def test_a_soak_kills_goes_on_and_finds_another_end(tmp_path, capfd):
    if reason := find_reason_against(tmp_path):
        pytest.skip(reason)
    plain = ("transformers", 1, False)
    seed = next(s for s in itertools.count() if (c := deal(s, 0)) and (c.sampler, c.processes, c.disk) == plain)
    assert soak(tmp_path, 2, seed) == 0
    assert "2/2 run 0 transformers-1-" in capfd.readouterr().out
    assert soak(tmp_path, 2, seed) == 0  # there is nothing left to do
    assert "run 0" not in capfd.readouterr().out
    (lines,) = ledger.read(tmp_path / "campaigns.jsonl")
    assert len(lines["kills"]) == 2
    assert not list((tmp_path / "campaigns").iterdir())

    (tmp_path / "campaigns.jsonl").unlink()
    (reference,) = (tmp_path / "references").iterdir()
    metrics: Path = reference / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"grad_norm": ', '"grad_norm": 1', 1))
    assert soak(tmp_path, 2, seed) == 1
    assert "run 0 ended differently; it is kept in" in capfd.readouterr().err
    assert (tmp_path / "campaigns" / "0000" / "whole" / "run" / "metrics.jsonl").exists()
    assert soak(tmp_path, 2, seed) == 1  # a difference that was found is not forgotten
