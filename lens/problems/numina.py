"""Loads NuminaMath-1.5: about 900,000 problems from competitions and school books, many without a checkable answer.

Source: Li et al. 2024, "NuminaMath: The largest public dataset in AI4Maths with 860k pairs of competition math problems
and solutions". Version 1.5 is the data set AI-MO/NuminaMath-1.5 on the Hugging Face hub. It has no levels.
"""

from __future__ import annotations

from datasets import Dataset

from lens.problems.problem import Dropped, Problem, collect
from lens.problems.upstream import read_upstream

REPO = "AI-MO/NuminaMath-1.5"
REVISION = "1b05109f9e5c1ad06c0663519502416c30b300f8"
COLUMNS = ("problem", "answer", "problem_type", "question_type", "problem_is_valid", "solution_is_valid")


def load_numina(
    *,
    path: str | None = None,
    split: str | None = None,
    repo: str = REPO,
    revision: str = REVISION,
    streaming: bool = False,
    drop_proofs: bool = True,
    drop_notfound: bool = True,
    drop_multiple_choice: bool = True,
    drop_invalid: bool = True,
    drop_empty: bool = True,
    key: str = "dataset.numina",
) -> Dataset:
    """Load NuminaMath-1.5; by default, only problems whose answer a verifier can check.

    A row that several filters would drop is counted under the first of them, in the order of the arguments.

    Args:
        path: local file (or pattern, such as ``train-*.parquet``) with the columns of ``COLUMNS``; None reads the hub.
        split: train (default).
        repo: hub repository, as owner/name.
        revision: its commit.
        streaming: read rows as they come, without a copy in the cache.
        drop_proofs: leave out rows with the answer "proof" or the question type "proof".
        drop_notfound: leave out rows with the answer "notfound", upstream's mark where the solution gave none.
        drop_multiple_choice: leave out rows with the question type "MCQ", whose answer is a letter.
        drop_invalid: leave out rows whose problem or solution is not marked as valid ("Yes").
        drop_empty: leave out rows with an empty problem or answer.
        key: where this source stands in the config, for error messages.

    Raises:
        ConfigError: rows cannot be found or used; the message names file, row and key.
    """
    upstream = read_upstream(
        "numina",
        path=path,
        split=split,
        repo=repo,
        revision=revision,
        streaming=streaming,
        key=key,
        splits=("train",),
        columns=COLUMNS,
    )

    def convert(row: dict) -> Problem:
        if drop_proofs and "proof" in (row["answer"], row["question_type"]):
            raise Dropped("proof")
        if drop_notfound and row["answer"] == "notfound":
            raise Dropped("answer not found")
        if drop_multiple_choice and row["question_type"] == "MCQ":
            raise Dropped("multiple choice")
        if drop_invalid and row["problem_is_valid"] != "Yes":
            raise Dropped("problem not valid")
        if drop_invalid and row["solution_is_valid"] != "Yes":
            raise Dropped("solution not valid")
        return Problem(row["problem"] or "", row["answer"] or "", subject=row["problem_type"])

    return collect(upstream, convert, drop_empty=drop_empty, nullable=COLUMNS)
