r"""Loads MATH, 12,500 competition problems in five levels and seven subjects, and MATH-500, 500 of them.

Sources: Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset" (arXiv:2103.03874);
Lightman et al. 2023, "Let's Verify Step by Step" (arXiv:2305.20050), whose test problems are MATH-500.

MATH has no answer column. The answer is the content of the last ``\boxed{}`` of the solution. It is copied letter by
letter, since cleaning it as text breaks answers such as matrices (``\\`` becomes ``\``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from datasets import Dataset

from lens.problems.choosing import choose_problems
from lens.problems.problem import Problem, collect, hash_text, parse_level
from lens.problems.upstream import read_upstream

log = logging.getLogger(__name__)

MATH_REPO = "DigitalLearningGmbH/MATH-lighteval"
MATH_REVISION = "0530c78699ea5e8eb5530600900e1f328b48acad"
MATH_SIZES = {"train": 7500, "test": 5000}
read_math = partial(read_upstream, "math", splits=tuple(MATH_SIZES))
MATH500_REPO = "HuggingFaceH4/MATH-500"
MATH500_REVISION = "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"

BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # a control symbol such as \{ is not a brace
MATH_END = re.compile(r"\$|\\[)\]]|\n")


def load_math(
    *,
    path: str | None = None,
    split: str | None = None,
    repo: str = MATH_REPO,
    revision: str = MATH_REVISION,
    streaming: bool = False,
    drop_empty: bool = True,
    levels: Sequence[int] | None = None,
    solved_in: str | None = None,
    key: str = "dataset.math",
) -> Dataset:
    r"""Load MATH in the split of its authors: 7,500 training and 5,000 test problems.

    Args:
        path: local file with problem, level, type and solution; None reads the hub.
        split: train (default) or test.
        repo: hub repository, as owner/name.
        revision: its commit.
        streaming: read rows as they come, without a copy in the cache.
        drop_empty: leave out problems whose solution has no box (two of the training split).
        levels: the levels to keep. None: all.
        solved_in: the folder of an evaluation: problems with right and wrong answers in it are kept. None: all.
        key: where this source stands in the config, for error messages.

    Raises:
        ConfigError: rows cannot be found or used; the message names file, row and key.
    """
    where = {"path": path, "split": split, "repo": repo, "revision": revision, "streaming": streaming, "key": key}
    upstream = read_math(**where, columns=("problem", "level", "type", "solution"))

    def convert(row: dict) -> Problem:
        return Problem(row["problem"], last_boxed(row["solution"]), parse_level(row["level"]), row["type"])

    notes = {"without a level": lambda problem: problem.level is None}
    problems = collect(upstream, convert, drop_empty=drop_empty, notes=notes)
    size = MATH_SIZES[split or "train"]
    if len(problems) > size:
        message = "%s=%s: %s problems, but MATH's %s split has %s. Splits of 12,000 hold most of the test problems"
        counts = f"{len(problems):,}", split or "train", f"{size:,}"
        log.warning(message, upstream.origin_key, upstream.origin, *counts)
    return choose_problems(problems, levels, solved_in, key)


def load_solutions(**where: Any) -> dict[str, str]:
    """Load MATH's worked solutions, by the ids that their problems get from `load_math`.

    ``where`` is its arguments path, split, repo, revision, streaming and key.

    Raises:
        ConfigError: rows cannot be found or used; the message names file, row and key.
    """
    solutions: dict[str, str] = {}
    for _, row in read_math(**where, columns=("problem", "solution")):
        solutions.setdefault(hash_text("math", row["problem"]), row["solution"])
    return solutions


def load_math500(
    *,
    path: str | None = None,
    split: str | None = None,
    repo: str = MATH500_REPO,
    revision: str = MATH500_REVISION,
    streaming: bool = False,
    drop_empty: bool = True,
    key: str = "dataset.math500",
) -> Dataset:
    """Load MATH-500, which has answers, levels as numbers and ids of its own. Its only split is test.

    Args:
        path: local file with problem, answer, level, subject and unique_id; None reads the hub.
        split: test (default).
        repo: hub repository, as owner/name.
        revision: its commit.
        streaming: read rows as they come, without a copy in the cache.
        drop_empty: leave out problems without an answer (there are none upstream).
        key: where this source stands in the config, for error messages.

    Raises:
        ConfigError: rows cannot be found or used; the message names file, row and key.
    """
    upstream = read_upstream(
        "math500",
        path=path,
        split=split,
        repo=repo,
        revision=revision,
        streaming=streaming,
        key=key,
        splits=("test",),
        columns=("problem", "answer", "level", "subject", "unique_id"),
    )

    def convert(row: dict) -> Problem:
        return Problem(row["problem"], row["answer"], parse_level(row["level"]), row["subject"], row["unique_id"])

    return collect(upstream, convert, drop_empty=drop_empty)


def last_boxed(solution: str) -> str:
    r"""Return the content of the last ``\boxed`` of a solution, letter by letter; "" if there is none or it never ends.

    ``\boxed{\frac{1}{2}}`` gives ``\frac{1}{2}``. Without braces, ``\boxed 2$`` gives all up to the end of the
    formula. A few test solutions use ``\fbox`` instead.
    """
    _, box, rest = solution.rpartition(r"\boxed")
    if not box:
        _, box, rest = solution.rpartition(r"\fbox")
    rest = rest.lstrip() if box else ""
    if not rest.startswith("{"):
        return MATH_END.split(rest)[0]
    depth = 0
    for token in BRACE.finditer(rest):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return rest[1 : token.start()]
    return ""
