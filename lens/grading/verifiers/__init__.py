"""Finds the verifier that a gold answer names.

A gold answer is a formula, and math-verify judges what is held against it. Or it is ``NAME://TEXT``. Then the module
NAME of this folder judges, by its function ``verify(text, prediction) -> Verdict``. So problems with different
verifiers may stand in one data set, and stored answers can be judged again without their problems.

A verifier reads what a model wrote, so it runs in the workers, within their limits of time and memory. It imports
nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from lens.grading.judge import REWARD_SETTINGS, Settings, Verdict, judge

NAMED = re.compile(r"([a-z][a-z0-9_]*)://(.*)", re.DOTALL)


def split_gold(gold: str) -> tuple[str | None, str]:
    """Return the name of a gold answer's verifier, None for math-verify, and the gold answer without it."""
    named = NAMED.fullmatch(gold)
    return (named[1], named[2]) if named else (None, gold)


def verify(gold: str, prediction: str, settings: Settings = REWARD_SETTINGS) -> Verdict:
    """Judge a prediction by the verifier that its gold answer names, in this process and for as long as it takes.

    Args:
        gold: the right answer, as it stands in the data set.
        prediction: the content of the box.
        settings: how math-verify compares; other verifiers have none.

    Returns:
        The verdict; ``error`` if there is no such verifier, or it fails.

    Raises:
        MemoryError: the process has too little memory left.
    """
    name, text = split_gold(gold)
    if name is None:
        return judge(gold, prediction, settings)
    # A verifier of one's own may fail on model output as computer algebra does. Only here does that become a verdict.
    try:
        return find_verifier(name)(text, prediction)
    except MemoryError:
        raise
    except Exception:
        return "error"


@cache
def find_verifier(name: str) -> Callable[[str, str], Verdict]:
    """Return the function ``verify`` of a verifier.

    Raises:
        LookupError: there is no such verifier.
    """
    module = f"{__name__}.{name}"
    if find_spec(module) is None:
        raise LookupError(f"no verifier {name!r} in lens/grading/verifiers/")
    return import_module(module).verify
