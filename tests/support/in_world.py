"""Runs scripts/train.py with the worlds of another folder beside the shipped ones: in_world.py FOLDER OVERRIDES."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from lens.problems import worlds

if __name__ == "__main__":
    worlds.__path__.append(sys.argv.pop(1))
    worlds.list_worlds.cache_clear()
    sys.argv[0] = "scripts/train.py"
    runpy.run_path(str(Path(__file__).resolve().parents[2] / sys.argv[0]), run_name="__main__")
