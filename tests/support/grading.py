"""Answers to grade: in a box, or rows of others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


def boxed(text: str) -> str:
    return rf"Therefore the answer is $\boxed{{{text}}}$."


def shared_rows(name: str) -> list[dict]:
    if "LENS_SHARED" not in os.environ:
        pytest.skip("set LENS_SHARED to the folder that holds data/ to run this test")
    lines = Path(os.environ["LENS_SHARED"], "data", name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
