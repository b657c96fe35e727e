"""The verifiers of reasoning-gym's tasks: against checks of our own, and against answers that mean harm."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator

import pytest
from datasets import Dataset

from lens.errors import ConfigError
from lens.grading.golds import check_verifiers
from lens.grading.pool import Grader
from lens.grading.verifiers import verify
from tests.support.grading import boxed
from tests.support.hostile import hostile_answer
from tests.support.reasoning_gym import make_puzzles, needs_reasoning_gym

pytestmark = needs_reasoning_gym
SUM = "reasoning_gym://7\n//{'task': 'chain_sum', 'settings': {}, 'metadata': {}}"
WORD = "reasoning_gym://niugnep\n//{'task': 'spell_backward', 'settings': {}, 'metadata': {}}"
FRACTION = "reasoning_gym://1/2\n//{'task': 'coin_flip', 'settings': {}, 'metadata': {}}"
ENDLESS = "1e9999999999"  # as a fraction it has ten billion digits


def is_right(task: str, question: str, answer: str) -> bool:
    """What the question asks, worked out without the package."""
    if task == "spell_backward":
        return answer == question.split()[-1][::-1]
    numbers = [int(number.replace(" ", "")) for number in re.findall(r"(?:[-+] )?\d+", question.replace("=", ""))]
    return int(answer) == (sum(numbers) if task == "chain_sum" else math.lcm(*numbers))


def vary(rng: random.Random, task: str, answer: str) -> str:
    """An answer like the right one; now and then it is the right one."""
    if rng.random() < 0.4:
        return answer
    if task == "spell_backward":
        place = rng.randrange(len(answer))
        return answer[:place] + rng.choice("aeiou") + answer[place + 1 :]
    return str(rng.choice([1, 1, 2, -1]) * int(answer) + rng.choice([0, 0, 1, -1, 10]))


def test_verdicts_agree_with_checks_of_our_own():
    rng, seen = random.Random(0), {}
    for row in make_puzzles("train", 0, per_level=10):
        own = row["answer"].removeprefix("reasoning_gym://").partition("\n//")[0]
        for _ in range(20):
            answer = vary(rng, row["subject"], own)
            right = is_right(row["subject"], row["problem"], answer)
            found = verify(row["answer"], rf"\text{{{answer}}}" if rng.random() < 0.5 else f" {answer}\n")
            assert found.verdict == ("correct" if right else "incorrect"), (row, answer)
            assert (found.score == 1.0) == right and 0 <= found.score <= 1
            seen[row["subject"], right] = seen.get((row["subject"], right), 0) + 1
    assert len(seen) == 6 and min(seen.values()) > 200 and sum(seen.values()) == 2600


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(num_workers=1, timeout_s=2.0, memory_gb=1.0) as shared:
        yield shared


def test_a_threshold_turns_scores_into_verdicts(grader):
    texts, golds = [boxed("niugnep"), boxed("niugnxx"), boxed("7"), "7", boxed("3")], [WORD, WORD, SUM, SUM, "3"]
    grades = grader.grade(texts, golds)
    assert [grade.verdict for grade in grades] == ["correct", "incorrect", "correct", "no_answer", "correct"]
    assert [grade.score for grade in grades] == [1.0, pytest.approx(5 / 7), 1.0, None, None]
    assert [grade.credit for grade in grades] == [1.0, pytest.approx(5 / 7), 1.0, 0.0, 1.0]
    grader.correct_from = 0.5
    try:
        assert [grade.correct for grade in grader.grade(texts, golds)] == [True, True, True, False, True]
    finally:
        grader.correct_from = 1.0
    assert grader.list_failing_golds([WORD, SUM, FRACTION]) == []


@pytest.mark.parametrize(("key", "value"), [("correct_from", 0), ("correct_from", 1.5), ("reward", "both")])
def test_a_threshold_or_reward_that_cannot_be_is_refused(key: str, value: object):
    with pytest.raises(ConfigError, match=f"grader.{key}={value!r}"):
        Grader(**{key: value})


def test_hostile_answers_get_a_verdict_within_the_limits(grader):
    """An answer that the limits end takes no other with it, and none runs as code."""
    texts = [hostile_answer(number)[0] for number in range(40)]
    texts += [boxed(text) for text in ("9" * 900, "1e999999999", "\0", "\ud800", "NaN", "__import__('os').abort()")]
    grades = grader.grade([*texts, boxed("7")], [SUM] * (len(texts) + 1))
    assert {grade.verdict for grade in grades} <= {"correct", "incorrect", "no_answer"} and grades[-1].correct
    assert {float(grade.extracted.replace(",", "")) for grade in grades if grade.correct} == {7.0}
    grades = grader.grade([boxed(ENDLESS), boxed("1/2"), boxed("0.5")], [FRACTION] * 3)
    assert grades[0].verdict in ("timeout", "error")
    assert [grade.verdict for grade in grades[1:]] == ["correct", "correct"]


def test_a_gold_answer_that_no_verifier_can_judge_ends_the_run_in_one_line(grader):
    rows = {"problem": "p", "level": 3, "id": "p", "source": "reasoning_gym"}
    endless = FRACTION.replace("1/2", ENDLESS)
    sets = {"dataset": Dataset.from_list([rows | {"subject": "coin_flip", "answer": endless}])}
    with pytest.raises(ConfigError, match=r"grader.timeout_s=2.0: .* a right answer of coin_flip, Level 3 \(dataset\)"):
        check_verifiers(grader, sets)
    check_verifiers(grader, {"dataset": Dataset.from_list([rows | {"subject": None, "answer": "1"}])})


def test_a_verifier_that_fails_makes_the_gold_bad(grader):
    broken = [
        "reasoning_gym://7",
        "reasoning_gym://7\n//{'task': 'nothing', 'settings': {}, 'metadata': {}}",
        "reasoning_gym://7\n//no literal",
    ]
    assert [grade.verdict for grade in grader.grade([boxed("7")] * 3, broken)] == ["bad_gold"] * 3
