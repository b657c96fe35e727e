"""What tests of runs share."""

from __future__ import annotations

import os

import pytest
import wandb


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home without any account."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()  # W&B reads its settings once a process
    yield tmp_path
    wandb.teardown()
