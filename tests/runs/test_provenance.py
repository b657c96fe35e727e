"""What is recorded of where a result comes from."""

from __future__ import annotations

from lens.runs.provenance import describe_provenance


def test_provenance_without_git_says_so(monkeypatch):
    known = describe_provenance()
    assert known["packages"]["wandb"]
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert describe_provenance()["git"] == {"commit": None, "dirty": None}
