"""Lists the most confident answers that the grader called wrong, beside a second opinion.

LENS gives its largest penalty to a wrong answer that the model was sure of. If that answer was right after all, the
penalty falls on what the model should learn. So the surest answers graded wrong are the ones to read.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lens.config.checks import check_writable
from lens.errors import ConfigError
from lens.grading.judge import WRONG
from lens.grading.second_opinion import agrees
from lens.grading.verifiers import split_gold
from lens.problems.math import last_boxed
from lens.runs.answers import find_answers, read_answers
from lens.terminal import show_table

ID = {"rollouts": "problem_id", "evaluations": "id"}  # the name of the problem's column
SAME = ["problem", "gold", "answer", "verdict"]  # answers that agree in these columns share a row of the audit
COLUMNS = ["problem", "level", "confidence", "times", "gold", "answer", "second opinion", "verdict", "step", "sample"]
PRINTED_CHARACTERS = 80  # of an answer in the terminal; the CSV file has the whole answer


def audit_grades(run: Path, *, source: str, step: int | None, limit: int, target: Path) -> pd.DataFrame:
    """List a run's most confident answers that were graded wrong, beside a second opinion.

    Prints two tables: the most confident of all, and the most confident that the second opinion calls correct. Writes
    all of them to a CSV file. Equal answers to a problem share a row, which has the highest confidence among them.

    Args:
        run: a run folder, or the folder of one evaluation.
        source: rollouts, evaluations, or auto, which means rollouts if the run stored any, else evaluations.
        step: the step whose answers are listed; None takes all that are stored.
        limit: how many rows of each table are printed.
        target: the CSV file.

    Returns:
        The rows of the CSV file.

    Raises:
        ConfigError: an unknown source, a limit below 1, a folder without such answers, or a target that cannot be
            written.
    """
    if source not in ("auto", "rollouts", "evaluations"):
        raise ConfigError("source", source, "must be one of auto, rollouts, evaluations")
    if type(limit) is not int or limit < 1:
        raise ConfigError("limit", limit, "must be an integer >= 1")
    if source == "auto":
        source = "rollouts" if any((run / "rollouts").glob("step_*.parquet")) else "evaluations"
    files = find_answers(run, source, step)
    if target.is_dir():
        raise ConfigError("target", str(target), "must be a file, not a folder")
    check_writable("target", target.parent)
    parts, graded = [], 0
    for at, file in files.items():
        answers = read_answers(file, ["sample", "level", "text", "answer", "verdict", "confidence", ID[source]])
        parts.append(find_wrong(answers.rename(columns={ID[source]: "problem"})).assign(step=at))
        graded += len(answers)
    wrong = pd.concat(parts, ignore_index=True)
    listed = merge_equal_answers(wrong[wrong["answer"] != ""])
    doubted = listed[listed["second opinion"] == "correct"]

    compared, disputed = listed["times"].sum(), doubted["times"].sum()
    print(f"{graded:,} answers of {source}: {len(wrong):,} graded wrong, {compared:,} of them with an answer in a box.")
    print(f"Second opinion on those: {disputed:,} are correct, {100 * disputed / max(compared, 1):.1f} %.")
    for title, rows in (
        ("The most confident answers graded wrong", listed),
        ("The most confident of those that are correct by the second opinion", doubted),
    ):
        if len(rows):
            show_table(title, rows.head(limit)[COLUMNS].map(shorten_value))
    listed.to_csv(target, index=False)
    print(f"all {len(listed):,} different ones: {target}")
    return listed


def find_wrong(answers: pd.DataFrame) -> pd.DataFrame:
    """Return the rows graded wrong: ``gold`` is the gold answer, ``answer`` the content of the last box, or ""."""
    wrong = answers[answers["verdict"].isin(WRONG)].rename(columns={"answer": "gold"})
    golds = [split_gold(gold).answer for gold in wrong["gold"]]
    return wrong.assign(gold=golds, answer=[last_boxed(text) for text in wrong["text"]]).drop(columns="text")


def merge_equal_answers(wrong: pd.DataFrame) -> pd.DataFrame:
    """Return a row per problem and answer, the most confident first; ``times`` says how often it was given.

    The column "second opinion" says correct or incorrect.
    """
    ranked = wrong.sort_values("confidence", ascending=False, kind="stable")
    ranked = ranked.assign(times=ranked.groupby(SAME)["sample"].transform("size")).drop_duplicates(SAME)
    pairs = zip(ranked["gold"], ranked["answer"], strict=True)
    ranked["second opinion"] = ["correct" if agrees(gold, answer) else "incorrect" for gold, answer in pairs]
    return ranked[COLUMNS]


def shorten_value(value: object) -> str:
    """Return a value as text that fits into one line of a table."""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = " ".join(str(value).split())
    return text if len(text) <= PRINTED_CHARACTERS else f"{text[: PRINTED_CHARACTERS - 2]} …"
