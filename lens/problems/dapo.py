"""Loads DAPO-Math-17k: competition problems rewritten so that every answer is an integer. No levels, no subjects.

Source: Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale" (arXiv:2503.14476). The
authors' other data sets, such as their AIME 2024, have the same form and can be loaded too.

Upstream repeats its 17,917 rows a hundred times, wraps each problem in an instruction about the form of the answer,
and gives a few problems two different answers.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from lens.errors import ConfigError
from lens.problems.problem import Dropped, Problem, collect, fingerprint
from lens.problems.upstream import Upstream, read_upstream

log = logging.getLogger(__name__)

REPO = "BytedTsinghua-SIA/DAPO-Math-17k"
REVISION = "65877096c24ffa7abc4e4fa5edb95cf3413a5674"
COLUMNS = ("prompt", "reward_model.ground_truth", "extra_info.index")

# Upstream's instruction, before and after every problem.
BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'

CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")


def load_dapo(
    *,
    path: str | None = None,
    split: str | None = None,
    repo: str = REPO,
    revision: str = REVISION,
    streaming: bool = False,
    deduplicate: str = "row",
    drop_conflicting: bool = True,
    drop_chinese: bool = False,
    drop_empty: bool = True,
    key: str = "dataset.dapo",
) -> Dataset:
    """Load DAPO-Math-17k, each row once and without the instruction around it.

    Args:
        path: local file with prompt, reward_model.ground_truth and extra_info.index; None reads the hub.
        split: train (default).
        repo: hub repository, as owner/name.
        revision: its commit.
        streaming: read rows as they come, without a copy in the cache.
        deduplicate: ``row`` keeps one of upstream's repetitions of a row (same index, prompt and answer). ``problem``
            also drops a problem that occurs again under another index with the same answer.
        drop_conflicting: leave out all rows of a problem that occurs with different answers.
        drop_chinese: leave out problems with Chinese characters; they are counted either way.
        drop_empty: leave out rows with an empty problem or answer.
        key: where this source stands in the config, for error messages.

    Raises:
        ConfigError: rows cannot be found or used; the message names file, row and key.
    """
    if deduplicate not in ("row", "problem"):
        raise ConfigError(f"{key}.deduplicate", deduplicate, "must be row or problem")
    where = {"path": path, "split": split, "repo": repo, "revision": revision, "streaming": streaming, "key": key}
    upstream = read_upstream("dapo", **where, splits=("train",), columns=COLUMNS)
    rows, num_read = distinct_rows(upstream)
    answers = group_answers(rows)
    if bare := sum(not is_wrapped(row["prompt"]) for _, row in rows):
        log.warning("%s=%s: %d prompts lack upstream's instruction", upstream.origin_key, upstream.origin, bare)
    seen: set[tuple[str, str]] = set()

    def convert(row: dict) -> Problem:
        problem = Problem(unwrap(row["prompt"]), row["reward_model.ground_truth"], id=str(row["extra_info.index"]))
        same = fingerprint(problem.problem)
        if drop_conflicting and len(answers[same]) > 1:
            raise Dropped("conflicting answer")
        if drop_chinese and is_chinese(problem):
            raise Dropped("in Chinese")
        if deduplicate == "problem" and (same, problem.answer) in seen:
            raise Dropped("problem repeated")
        seen.add((same, problem.answer))
        return problem

    dropped = {"row repeated": num_read - len(rows)} if num_read > len(rows) else {}
    notes = {"in Chinese": is_chinese}
    return collect(upstream, convert, drop_empty=drop_empty, rows=rows, dropped=dropped, notes=notes)


def group_answers(rows: list[tuple[int, dict[str, Any]]]) -> dict[str, set[str]]:
    """Map the fingerprint of each problem to the different answers that its rows give."""
    answers = defaultdict(set)
    for _, row in rows:
        answers[fingerprint(unwrap(row["prompt"]))].add(row["reward_model.ground_truth"])
    return answers


def distinct_rows(upstream: Upstream) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """Return the rows that differ from all rows before them, and the number of rows read.

    Only a hundredth of upstream's many rows is distinct. So rows are read in batches and column by column.

    Returns:
        ``(number, {column: value})`` of each distinct row, where ``prompt`` is the text of its message; and the number
        of rows read.
    """
    first: dict[tuple, int] = {}
    num_read = 0
    for batch in upstream.batches():
        prompt, *others = (batch[column] for column in COLUMNS)
        keys = zip(texts_of(prompt, upstream, num_read), *(column.to_pylist() for column in others), strict=True)
        for number, key in enumerate(keys, start=num_read + 1):
            first.setdefault(key, number)
        num_read += len(batch)
    return [(number, dict(zip(COLUMNS, key, strict=True))) for key, number in first.items()], num_read


def texts_of(prompts: pa.ChunkedArray, upstream: Upstream, num_before: int) -> list[str]:
    """Return the text of each prompt, which must be a list of one chat message.

    ``num_before`` rows were read before these; error messages count from there.
    """
    try:
        lengths = pc.fill_null(pc.list_value_length(prompts), 0)
        if (place := pc.index(pc.equal(lengths, 1), False).as_py()) >= 0:
            raise upstream.refuse(num_before + place + 1, "the prompt is not one chat message")
        texts = pc.struct_field(pc.list_flatten(prompts), "content")
    except pa.ArrowException as error:
        valid = "the column prompt must hold lists of one chat message (content, role)"
        raise ConfigError(upstream.origin_key, upstream.origin, valid) from error
    if (place := pc.index(pc.is_valid(texts), False).as_py()) >= 0:
        raise upstream.refuse(num_before + place + 1, "the prompt has no content")
    return texts.to_pylist()


def unwrap(prompt: str) -> str:
    """Return the problem in a prompt, without upstream's instruction."""
    return prompt.removeprefix(BEFORE).removesuffix(AFTER)


def is_wrapped(prompt: str) -> bool:
    """Return whether the instruction is on both sides of the problem, word for word."""
    return prompt.startswith(BEFORE) and prompt.endswith(AFTER)


def is_chinese(problem: Problem) -> bool:
    """Return whether the problem has Chinese characters."""
    return CHINESE.search(problem.problem) is not None
