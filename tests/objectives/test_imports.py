"""The objectives can be used without what runs need: no configs, no data sets, no models, no tracking."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("hydra", "omegaconf", "datasets", "transformers", "pandas", "vllm", "wandb")


def test_importing_the_objectives_loads_nothing_that_runs_need():
    check = "import json, sys, lens.objectives; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    loaded = json.loads(result.stdout)
    assert "lens.objectives" in loaded
    assert [name for name in HEAVY if name in loaded] == []
