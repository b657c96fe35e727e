r"""Scores an answer by the verifier of its reasoning-gym task.

The data of a gold answer is a Python literal: the task, its settings that differ from the defaults, and the metadata of
the problem. lens/problems/reasoning_gym.py writes it. Tasks whose verifier runs an answer as code are refused there.

The answer is the content of the last box. Models put words in a box as ``\text{...}``, which is taken off.
"""

from __future__ import annotations

import re
from ast import literal_eval
from functools import lru_cache
from typing import Any

from reasoning_gym.factory import DATASETS

WORDS = re.compile(r"\\(?:text|mathrm|mbox|texttt)\{([^{}\\]*)\}")


def verify(answer: str, prediction: str, data: str) -> float:
    """Return the task's own score of a prediction, in [0, 1].

    Args:
        answer: a right answer.
        prediction: the content of the box.
        data: the literal.
    """
    problem = literal_eval(data)  # anew each time: a verifier may change what it gets
    words = WORDS.fullmatch(prediction.strip())
    prediction = words[1].strip() if words else prediction.strip()
    scorer = make_scorer(problem["task"], repr(problem["settings"]))
    return float(scorer.score_answer(prediction, {"answer": answer, "metadata": problem["metadata"]}))


@lru_cache(maxsize=64)
def make_scorer(task: str, settings: str) -> Any:
    """Return the package's object that scores answers to a task."""
    make, make_settings = DATASETS[task]
    return make(config=make_settings(**literal_eval(settings)))
