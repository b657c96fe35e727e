"""Finds the verifier that a gold answer names.

A gold answer is a formula, and math-verify judges what is held against it. Or it is ``NAME://ANSWER``. Then the module
NAME of this folder judges, by its function ``verify(answer, prediction)``. A last line ``//DATA`` holds what this
function needs beside the answer, as a third argument. It returns a verdict, or a score in [0, 1]. So problems with
different verifiers may stand in one data set, and stored answers can be judged again without their problems.

A verifier reads what a model wrote, so it runs in the workers, within their limits of time and memory. What its module
imports does not count.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from lens.grading.judge import REWARD_SETTINGS, Judgement, Settings, Verdict, judge

NAMED = re.compile(r"([a-z][a-z0-9_]*)://(.*?)(?:\n//([^\n]*))?", re.DOTALL)


class Gold(NamedTuple):
    """The parts of a gold answer.

    Attributes:
        verifier: the name of its verifier; None is math-verify.
        answer: an answer that is right.
        data: what the verifier needs beside it. None: nothing.
    """

    verifier: str | None
    answer: str
    data: str | None = None


def split_gold(gold: str) -> Gold:
    """Return the parts of a gold answer."""
    named = NAMED.fullmatch(gold)
    return Gold(*named.groups()) if named else Gold(None, gold)


def join_gold(gold: Gold) -> str:
    """Return the gold answer with these parts, the reverse of `split_gold`. The data must be one line."""
    return f"{gold.verifier}://{gold.answer}" + ("" if gold.data is None else f"\n//{gold.data}")


def prepare(gold: str) -> None:
    """Import the verifier of a gold answer, if there is one; if not, `verify` says so."""
    if (name := split_gold(gold).verifier) is not None:
        with suppress(LookupError, ImportError):
            find_verifier(name)


def verify(gold: str, prediction: str, settings: Settings = REWARD_SETTINGS) -> Judgement:
    """Judge a prediction by the verifier that its gold answer names, in this process and for as long as it takes.

    Args:
        gold: the right answer, as it stands in the data set.
        prediction: the content of the box.
        settings: how math-verify compares; other verifiers have none.

    Returns:
        The judgement; ``error`` if there is no such verifier, it fails, or its score is not in [0, 1].

    Raises:
        MemoryError: the process has too little memory left.
    """
    name, answer, data = split_gold(gold)
    if name is None:
        return Judgement(judge(gold, prediction, settings))
    # A verifier of one's own may fail on model output as computer algebra does. Only here does that become a verdict.
    try:
        found = find_verifier(name)(answer, prediction, *([] if data is None else [data]))
    except MemoryError:
        raise
    except Exception:
        return Judgement("error")
    if isinstance(found, str):
        return Judgement(found)
    return Judgement("correct" if found == 1 else "incorrect", found) if 0 <= found <= 1 else Judgement("error")


@cache
def find_verifier(name: str) -> Callable[..., Verdict | float]:
    """Return the function ``verify`` of a verifier.

    Raises:
        LookupError: there is no such verifier.
    """
    module = f"{__name__}.{name}"
    if find_spec(module) is None:
        raise LookupError(f"no verifier {name!r} in lens/grading/verifiers/")
    return import_module(module).verify
