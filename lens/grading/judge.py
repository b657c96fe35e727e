"""Compares one completion with one gold answer, with math-verify.

Judging is computer algebra on text that a model wrote. Such text can ask for anything: ``9^{9^{9^9}}`` never finishes,
and no signal handler runs meanwhile. So this code runs in worker processes (lens/grading/worker.py), which the pool
watches and may kill. Importing this module loads neither sympy nor math-verify.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

Verdict = Literal["correct", "incorrect", "no_answer", "timeout", "error", "bad_gold"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
JUDGED: tuple[Verdict, ...] = ("correct", "incorrect", "no_answer")
UNJUDGEABLE: tuple[Verdict, ...] = ("timeout", "error")  # the answer is to blame: its gold answer can be judged
UNJUDGED: tuple[Verdict, ...] = (*UNJUDGEABLE, "bad_gold")  # wrong in pass@k, and counted beside it
WRONG: tuple[Verdict, ...] = ("incorrect", "no_answer", *UNJUDGEABLE)  # what an answer is penalised for by default

Unjudgeable = Literal["incorrect", "invalid"]  # what an answer that cannot be judged counts as in training
MAY_TEACH: dict[Unjudgeable, tuple[Verdict, ...]] = {"incorrect": (*JUDGED, *UNJUDGEABLE), "invalid": JUDGED}


class Judgement(NamedTuple):
    """What a verifier says of an answer.

    Attributes:
        verdict: the verdict. Where there is a score, ``grader.correct_from`` decides between correct and incorrect.
        score: how right the answer is, in [0, 1]. None: the verifier gives verdicts alone.
    """

    verdict: Verdict
    score: float | None = None


@dataclass(frozen=True)
class Settings:
    r"""How two texts are compared. The defaults are those of the reward, chosen to be hard to game.

    Args:
        boxed_only: the prediction is the content of the last ``\boxed{}`` and nothing else: no number at the end, no
            formula after "the answer is", no earlier box. (math-verify alone joins neighbouring boxes into a set, so a
            model could collect guesses.) The gold is put into a box too, so that text, numbers and LaTeX are all parsed
            in one way. Where the LaTeX of a prediction cannot be read, as in ``= 12.``, math-verify's search for a
            plain number follows, in the box alone. False passes both texts to math-verify as they are.
        latex: look for LaTeX.
        expr: look for plain numbers and expressions outside a box too.
        boxed_match_priority: the rank of boxes among math-verify's patterns; 0 is the first.
        float_rounding: decimals that must agree if one side is a decimal fraction (math-verify's default).
        strict: variables must agree by name, and a tuple is not a set (math-verify's default).
        allow_set_relation_comp: accept ``x < 2`` if the gold is an interval (math-verify's default: no).
    """

    boxed_only: bool = True
    latex: bool = True
    expr: bool = False
    boxed_match_priority: int = 0
    float_rounding: int = 6
    strict: bool = True
    allow_set_relation_comp: bool = False


REWARD_SETTINGS = Settings()


def last_boxed(completion: str) -> str | None:
    r"""Return the content of the last ``\boxed{}``; None if there is none, or if it is empty or never closed.

    This takes one pass over the text after that box, whatever the text. As in TeX, ``\{`` and ``\}`` are no braces.
    """
    _, _, tail = completion.rpartition(r"\boxed")
    tail = tail.lstrip() if len(tail) < len(completion) else ""
    depth = 0
    for token in re.finditer(r"\\.|[{}]", tail, re.DOTALL) if tail.startswith("{") else ():
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return tail[1 : token.start()].strip() or None
    return None


def judge(gold: str, prediction: str, settings: Settings = REWARD_SETTINGS) -> Verdict:
    """Compare a prediction with a gold answer by math-verify, in this process and for as long as it takes.

    math-verify reads a text as a formula, as a string or as both. A match between any two readings is enough. Its own
    time limits are off, as they would turn an answer that takes too long into a wrong one. sympy starts each comparison
    with an empty cache and the same random numbers, so a verdict does not depend on what was judged before.

    Args:
        gold: the right answer, without a box. It comes first, as the comparison is not symmetric.
        prediction: the content of the box, or the whole completion if ``settings.boxed_only`` is off.
        settings: how to compare.

    Returns:
        ``correct`` or ``incorrect``; ``no_answer`` if nothing can be read from the prediction; ``error`` if nothing can
        be read from the gold, or if math-verify fails on some readings and the others do not match.

    Raises:
        MemoryError: the process has too little memory left.
    """
    rules = {name: getattr(settings, name) for name in ("float_rounding", "strict", "allow_set_relation_comp")}
    math_verify = _math_verify()
    failed = False
    _forget()
    # Computer algebra on model output fails in ways nobody can list. Only here does a failure become a verdict.
    try:
        if not (predictions := _parse(prediction, settings, numbers=True)):
            return "no_answer"
        golds = _parse(gold, settings)
    except MemoryError:
        raise
    except Exception:
        return "error"
    for readings in product(golds, predictions):
        try:
            if math_verify.verify(*readings, **rules, timeout_seconds=None, raise_on_error=True):
                return "correct"
        except MemoryError:
            raise
        except Exception:
            failed = True
    return "error" if failed or not golds else "incorrect"


@lru_cache(maxsize=4096)
def _parse(text: str, settings: Settings, *, numbers: bool = False) -> list[Any]:
    """Return math-verify's readings of a text. The cache lets a gold be parsed once for all its predictions.

    ``numbers``: read a plain number in a box whose LaTeX cannot be read. Not for golds: a matrix would become a number.
    """
    math_verify = _math_verify()
    anywhere = not settings.boxed_only
    latex = math_verify.LatexExtractionConfig(anywhere, boxed_match_priority=settings.boxed_match_priority)
    numbers = numbers and settings.boxed_only
    expr = math_verify.ExprExtractionConfig(anywhere or numbers)
    targets = [target for target, wanted in ((latex, settings.latex), (expr, settings.expr or numbers)) if wanted]
    text = text if anywhere else rf"\boxed{{{text}}}"
    return math_verify.parse(text, targets, parsing_timeout=None, raise_on_error=True)


def _forget() -> None:
    from sympy.core import cache, random

    cache.clear_cache()
    random.seed(0)


@cache
def _math_verify() -> ModuleType:
    """Import math-verify, which only workers need, and repair its reading of percentages.

    Without the repair every ``25\\%`` fails. The converter (latex2sympy2_extended 1.11) asks each atom for FUNC_GAMMA
    before it looks for a percentage. The grammar for ANTLR 4.9, the version that Hydra needs, has no such attribute.
    """
    import math_verify
    from latex2sympy2_extended.antlr_parser import PSParser

    if not hasattr(PSParser.AtomContext, "FUNC_GAMMA"):
        PSParser.AtomContext.FUNC_GAMMA = lambda atom: None
    return math_verify
