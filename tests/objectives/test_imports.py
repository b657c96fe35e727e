"""Objectives and integrations can be used without what runs need: no configs, no data sets, no models, no tracking."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("hydra", "omegaconf", "datasets", "transformers", "pandas", "vllm", "wandb", "trl", "verl")


@pytest.mark.parametrize("module", ["lens.objectives", "lens.integrations", "lens.errors"])
def test_importing_it_loads_nothing_that_runs_need(module):
    check = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    loaded = json.loads(result.stdout)
    assert module in loaded
    assert [name for name in HEAVY if name in loaded] == []
