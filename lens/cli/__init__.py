"""The command line. It says in one line what is missing where the objectives alone are installed."""

import importlib.util
import sys

from lens.errors import BAD_INPUT

if missing := [name for name in ("hydra", "omegaconf") if importlib.util.find_spec(name) is None]:
    print(f"error: {missing[0]} is not installed: the commands need pip install 'lens-rl[train]'", file=sys.stderr)
    sys.exit(BAD_INPUT)
