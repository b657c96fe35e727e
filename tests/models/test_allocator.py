"""Whether freed memory stays in the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Forward and backward passes over batches of three sizes, with tensors of 16 to 80 MiB. Prints the page faults of the
# last six.
PROGRAM = """
import resource
import torch
from lens.models.allocator import keep_freed_memory

def count_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def update(size):
    states = torch.randn(size, 64, requires_grad=True)
    ((states @ weight).relu() @ weight.T).square().sum().backward()

weight = torch.randn(64, 256)
{first}
for turn in range(12):
    if turn == 6:
        before = count_faults()
    update(2**16 + 2**13 * (turn % 3))
print(count_faults() - before)
"""


def count_faults(first: str) -> int:
    command = [sys.executable, "-c", PROGRAM.format(first=first)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_the_pages_of_freed_tensors_serve_the_next():
    assert count_faults("keep_freed_memory()") < 0.2 * count_faults("")
