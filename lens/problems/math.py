r"""MATH: 12,500 competition problems in five levels and seven subjects, and the 500 of them called MATH-500.

Sources: Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset" (arXiv:2103.03874);
Lightman et al. 2023, "Let's Verify Step by Step" (arXiv:2305.20050), whose test problems MATH-500 is.

MATH has no answer column: the answer is what stands in the last ``\boxed{}`` of the solution, taken over letter by
letter, since cleaning it as text breaks answers such as matrices (``\\`` becomes ``\``).
"""

from __future__ import annotations

import logging
import re

from datasets import Dataset

from lens.problems.problem import Problem, collect, parse_level
from lens.problems.upstream import read_upstream

log = logging.getLogger(__name__)

MATH_REPO = "DigitalLearningGmbH/MATH-lighteval"
MATH_REVISION = "0530c78699ea5e8eb5530600900e1f328b48acad"
MATH_SIZES = {"train": 7500, "test": 5000}
MATH500_REPO = "HuggingFaceH4/MATH-500"
MATH500_REVISION = "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"

BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # a control symbol such as \{ is no brace
MATH_END = re.compile(r"\$|\\[)\]]|\n")


def load_math(
    *,
    path: str | None = None,
    split: str | None = None,
    repo: str = MATH_REPO,
    revision: str = MATH_REVISION,
    streaming: bool = False,
    drop_empty: bool = True,
    key: str = "dataset.math",
) -> Dataset:
    r"""MATH in the split its authors made: 7,500 problems to train on, 5,000 to test on.

    Args:
        path: local file with problem, level, type and solution; None reads the hub.
        split: train (default) or test.
        repo: hub repository, as owner/name.
        revision: its commit.
        streaming: read rows as they come, without a copy in the cache.
        drop_empty: leave out problems whose solution boxes nothing (two of the training split).
        key: where this source stands in the config, for error messages.

    Raises:
        ConfigError: rows that cannot be used or found; the message names file, row and key.
    """
    upstream = read_upstream(
        "math",
        path=path,
        split=split,
        repo=repo,
        revision=revision,
        streaming=streaming,
        key=key,
        splits=tuple(MATH_SIZES),
        columns=("problem", "level", "type", "solution"),
    )

    def convert(row: dict) -> Problem:
        return Problem(row["problem"], last_boxed(row["solution"]), parse_level(row["level"]), row["type"])

    notes = {"without a level": lambda problem: problem.level is None}
    problems = collect(upstream, convert, drop_empty=drop_empty, notes=notes)
    size = MATH_SIZES[split or "train"]
    if len(problems) > size:
        message = "%s=%s: %s problems, but MATH's %s split has %s. Splits of 12,000 hold most of the test problems"
        counts = f"{len(problems):,}", split or "train", f"{size:,}"
        log.warning(message, upstream.origin_key, upstream.origin, *counts)
    return problems


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
    """MATH-500, which has answers, levels as numbers and ids of its own; its only split is test.

    Args:
        path: local file with problem, answer, level, subject and unique_id; None reads the hub.
        split: test (default).
        repo: hub repository, as owner/name.
        revision: its commit.
        streaming: read rows as they come, without a copy in the cache.
        drop_empty: leave out problems without an answer (there are none upstream).
        key: where this source stands in the config, for error messages.

    Raises:
        ConfigError: rows that cannot be used or found; the message names file, row and key.
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
    r"""What the last ``\boxed`` of a solution holds, letter by letter; "" where there is none or it never ends.

    ``\boxed{\frac{1}{2}}`` gives ``\frac{1}{2}``; without braces, ``\boxed 2$`` gives all up to the end of the formula.
    A few test solutions use ``\fbox`` instead.
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
