r"""What the grader may have got wrong: gold answers that nothing can match, and confident answers graded wrong.

LENS gives its largest penalty to a wrong answer that the model was sure of. Where that answer was right after all, the
penalty falls on what should be learnt; so the surest answers graded wrong are the ones to look at. A second opinion
reads them too, one that shares nothing with the grader: it compares texts and plain numbers, and does no algebra.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import pandas as pd
from datasets import Dataset

from lens.errors import ConfigError
from lens.grading import Grader
from lens.problems.math import last_boxed
from lens.reporting.terminal import show_table
from lens.stored import read_answers, stored_answers
from lens.validation import check_writable

log = logging.getLogger(__name__)

ID = {"rollouts": "problem_id", "evaluations": "id"}  # what the column is called
NAMED = 20  # gold answers of one set that the log names
GRADED_WRONG = ("incorrect", "no_answer")
SAME = ["problem", "gold", "answer", "verdict"]  # answers that agree in these are one row of an audit
COLUMNS = ["problem", "level", "confidence", "times", "gold", "answer", "second opinion", "verdict", "step", "sample"]
PRINTED_CHARACTERS = 80  # of an answer; the CSV file has all of it

WORDS = r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox|operatorname)\s*\{([^{}]*)\}"
UNIT = re.compile(rf"(?<=[\d}}])\s*{WORDS}(?:\^\{{?\d\}}?)?\s*$")
SPELLINGS = [  # what may differ between two ways to write one answer, in the order in which it is taken away
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (WORDS, r"\1"),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*(\d)", r"\\frac{\1}"),
        (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"(?<!\\)\\[ ,;:!]|\\q?quad(?![a-zA-Z])|~|\s", ""),
        (r"\\?\$|\^\{?\\circ\}?|\\?%|\.$", ""),
        (r"\{,\}", ","),
        (r"^[a-zA-Z]=", ""),
    )
]
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
FRACTION = re.compile(r"\\frac\{(-?\d+)\}\{(\d+)\}")
PLAIN_NUMBER = re.compile(r"[-\d./ ]{1,60}")


def check_golds(grader: Grader, sets: Mapping[str, Dataset]) -> dict[str, list[dict[str, str]]]:
    """Grade each gold answer against itself; log the first that fail; return all, by set: id, answer, verdict."""
    failing = {}
    for name, problems in sets.items():
        found = grader.check_golds(problems["answer"][:])
        ids = problems["id"][:]
        failing[name] = [{"id": ids[place], "answer": answer, "verdict": verdict} for place, answer, verdict in found]
        for gold in failing[name][:NAMED]:
            message = "%s: no answer to %s can be right: its gold answer %r, against itself, is %s"
            log.warning(message, name, gold["id"], gold["answer"], gold["verdict"])
        if len(found) > NAMED:
            log.warning(
                "%s: and %d more gold answers that fail; all are in failing_golds.json", name, len(found) - NAMED
            )
    log.info("Gold answers that fail against themselves: %s", count_all(failing))
    return failing


def count_all(failing: Mapping[str, list[dict[str, str]]]) -> dict[str, int]:
    """How many gold answers of each set fail."""
    return {name: len(golds) for name, golds in failing.items()}


def audit(run: Path, *, source: str, step: int | None, limit: int, target: Path) -> pd.DataFrame:
    """List a run's most confident answers that were graded wrong, beside a second opinion.

    Prints two tables, the surest of all and the surest whose second opinion is that they are right, and writes all of
    them to a CSV file: equal answers to a problem in one row, with the confidence of the surest.

    Args:
        run: a run folder, or the folder of one evaluation.
        source: rollouts, evaluations, or auto: rollouts where there are any.
        step: the answers of one step; None takes all that are stored.
        limit: rows that are printed, of each table.
        target: the CSV file.

    Raises:
        ConfigError: an unknown source, a limit below 1, a folder without such answers, or a target that cannot be.
    """
    if source not in ("auto", "rollouts", "evaluations"):
        raise ConfigError("source", source, "one of auto, rollouts, evaluations")
    if type(limit) is not int or limit < 1:
        raise ConfigError("limit", limit, "an integer >= 1")
    if source == "auto":
        source = "rollouts" if any((run / "rollouts").glob("step_*.parquet")) else "evaluations"
    files = stored_answers(run, source, step)
    if target.is_dir():
        raise ConfigError("target", str(target), "a file, not a folder")
    check_writable("target", target.parent)
    parts, graded = [], 0
    for at, file in files.items():
        answers = read_answers(file, ["sample", "level", "text", "answer", "verdict", "confidence", ID[source]])
        parts.append(graded_wrong(answers.rename(columns={ID[source]: "problem"})).assign(step=at))
        graded += len(answers)
    wrong = pd.concat(parts, ignore_index=True)
    listed = distinct(wrong[wrong["answer"] != ""])
    doubted = listed[listed["second opinion"] == "correct"]

    compared, disputed = listed["times"].sum(), doubted["times"].sum()
    print(f"{graded:,} answers of {source}: {len(wrong):,} graded wrong, {compared:,} of them with an answer in a box.")
    print(f"Second opinion on those: {disputed:,} are correct, {100 * disputed / max(compared, 1):.1f} %.")
    for title, rows in (
        ("The most confident answers graded wrong", listed),
        ("The most confident of those that are correct by the second opinion", doubted),
    ):
        if len(rows):
            show_table(title, rows.head(limit)[COLUMNS].map(shortened))
    listed.to_csv(target, index=False)
    print(f"all {len(listed):,} different ones: {target}")
    return listed


def graded_wrong(answers: pd.DataFrame) -> pd.DataFrame:
    """The rows graded wrong; the gold answer is called ``gold``, and ``answer`` is what the last box holds, or ""."""
    wrong = answers[answers["verdict"].isin(GRADED_WRONG)].rename(columns={"answer": "gold"})
    return wrong.assign(answer=[last_boxed(text) for text in wrong["text"]]).drop(columns="text")


def distinct(wrong: pd.DataFrame) -> pd.DataFrame:
    """A row per problem and answer with ``times`` it was given and a ``second opinion``, the most confident first."""
    ranked = wrong.sort_values("confidence", ascending=False, kind="stable")
    ranked = ranked.assign(times=ranked.groupby(SAME)["sample"].transform("size")).drop_duplicates(SAME)
    agrees = [second_opinion(gold, answer) for gold, answer in zip(ranked["gold"], ranked["answer"], strict=True)]
    ranked["second opinion"] = ["correct" if same else "incorrect" for same in agrees]
    return ranked[COLUMNS]


def shortened(value: object) -> str:
    """A value in one line of a table."""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = " ".join(str(value).split())
    return text if len(text) <= PRINTED_CHARACTERS else f"{text[: PRINTED_CHARACTERS - 2]} …"


def second_opinion(gold: str, answer: str) -> bool:
    """Whether two answers are the same text, spelling aside, or the same plain number."""
    return spelled_alike(gold) == spelled_alike(answer) or bool(numbers(gold) & numbers(answer))


def spelled_alike(text: str) -> str:
    r"""The text without what is but spelling: spaces, ``$``, ``\left``, ``\text{}``, ``\dfrac``, ``x =``, case."""
    for pattern, replacement in SPELLINGS:
        text = pattern.sub(replacement, text)
    return text.casefold()


def numbers(text: str) -> set[Fraction]:
    r"""The number that a text is, as a decimal, a fraction or a mixed number; ``25\%`` is both 25 and 1/4."""
    plain = FRACTION.sub(r" \1/\2", THOUSANDS.sub("", spelled_alike(UNIT.sub("", text))))
    if not PLAIN_NUMBER.fullmatch(plain):
        return set()
    try:
        value = sum(map(Fraction, plain.removeprefix("-").split())) * (-1 if plain.startswith("-") else 1)
    except (ValueError, ZeroDivisionError):
        return set()
    return {value, value / 100} if "%" in text else {value}
