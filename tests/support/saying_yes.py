"""Runs a script as a terminal does in which somebody answers yes to every question: saying_yes.py SCRIPT OVERRIDES."""

from __future__ import annotations

import io
import runpy
import sys

if __name__ == "__main__":
    sys.stdin = io.StringIO("y\n" * 20)
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
