"""What a process says when another one is gone."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.command_line import ROOT, environment
from tests.support.ports import free_ports

PROGRAM = """
import os
from lens.distributed.collectives import barrier, process_group
from lens.errors import ProcessLost
try:
    with process_group():
        barrier()
        if os.environ["RANK"] == "1":
            os._exit(9)
        barrier()
except ProcessLost as lost:
    print(lost)
"""


def test_a_process_says_in_one_line_that_another_is_gone():
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "WORLD_SIZE": "2"}
    env = {**os.environ, **environment(PYTHONPATH=str(ROOT)), **address}
    start = [sys.executable, "-c", PROGRAM]
    lost = subprocess.Popen(start, env=env | {"RANK": "1"})
    left = subprocess.run(start, env=env | {"RANK": "0"}, capture_output=True, text=True, timeout=120)
    assert lost.wait(timeout=60) == 9
    (line,) = left.stdout.splitlines()
    assert line.startswith("another process of the run is gone (")
    assert left.returncode == 0, left.stderr
