"""pass@k against enumeration, and an evaluation whose answers are known, graded by the real grader."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from lens.errors import ConfigError
from lens.evaluation.evaluator import EvaluationSet, Evaluator
from lens.evaluation.scores import (
    compute_metrics,
    count_per_problem,
    iterate_slices,
    ks_up_to,
    make_table,
    pass_at_k,
    pass_at_ks,
)
from lens.grading.pool import Grader
from lens.problems import load_problems
from lens.problems.problem import FEATURES
from lens.problems.prompts import Prompt, PromptFormat, encode_problems
from lens.sampling.rollouts import Rollouts
from lens.sampling.transformers import TransformersSampler

# --- pass@k ---


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(samples):
    for right, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        subsets = list(itertools.combinations([True] * right + [False] * (samples - right), k))
        expected = sum(map(any, subsets)) / len(subsets)
        assert pass_at_k(samples, right, k) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_of_any_size(case):
    samples, right, k = case
    value = pass_at_k(samples, right, k)
    assert 0 <= value <= 1
    assert pass_at_k(samples, right, 1) == pytest.approx(right / samples)
    assert (value == 0) == (right == 0)
    if right + k > samples:
        assert value == 1  # no k answers are all wrong
    if right < samples:
        assert pass_at_k(samples, right + 1, k) >= value
    if k < samples:
        assert pass_at_k(samples, right, k + 1) >= value


@pytest.mark.parametrize(("samples", "right", "k"), [(4, 2, 0), (4, 2, 5), (4, 5, 2), (4, -1, 2), (0, 0, 1)])
def test_pass_at_k_refuses_what_cannot_be(samples, right, k):
    with pytest.raises(ValueError, match="between"):
        pass_at_k(samples, right, k)


@pytest.mark.parametrize(
    ("samples", "ks"), [(1, [1]), (2, [1, 2]), (3, [1, 2]), (16, [1, 2, 4, 8, 16]), (31, [1, 2, 4, 8, 16])]
)
def test_ks_are_the_powers_of_two(samples, ks):
    assert ks_up_to(samples) == ks


# --- an evaluation whose answers are known ---


class Reciter:
    """A sampler that recites: the answers of each problem are given beforehand, and seeds are kept."""

    def __init__(self, answers: dict[str, list[str]], truncated: Sequence[str] = ()):
        self.answers, self.truncated, self.seeds = answers, set(truncated), []

    def sample(self, prompts: Sequence[Prompt], num_generations: int, seed: int, **choices: object) -> Rollouts:
        self.seeds.append(seed)
        texts = [text for prompt in prompts for text in self.answers[prompt.problem_id]]
        assert len(texts) == len(prompts) * num_generations
        return Rollouts(
            prompts=prompts,
            num_generations=num_generations,
            completion_ids=torch.ones(len(texts), 2, dtype=torch.long),
            logprobs=torch.full((len(texts), 2), -1.0),
            lengths=torch.tensor([2, 1] * (len(texts) // 2)),
            finish_reasons=["length" if text in self.truncated else "stop" for text in texts],
            texts=texts,
        )


def box(answer: str) -> str:
    return rf"So it is \boxed{{{answer}}}."


# id, level, subject, answer, four samples; those with a box that is equal to the answer are right
ROWS = [
    ("a", 1, "Algebra", "5", [box("5"), box("5"), box("5.0"), "five"]),  # 3 right, 1 without an answer
    ("b", 4, "Algebra", r"\frac{1}{2}", [box("1/2"), box("2"), "no", box("0.2")]),  # 1 right, 1 without an answer
    ("c", 4, "Geometry", "7", [box("8"), box("9"), box("70"), "7"]),  # none right
    ("d", 5, None, "3", [box("3")] * 4),  # all right
]
CORRECT = {"a": 3, "b": 1, "c": 0, "d": 4}


def evaluation_set(name: str, rows: list[tuple]) -> EvaluationSet:
    columns = {
        "problem": [f"problem {row[0]}" for row in rows],
        "answer": [row[3] for row in rows],
        "level": [row[1] for row in rows],
        "subject": [row[2] for row in rows],
        "id": [row[0] for row in rows],
        "source": ["test"] * len(rows),
    }
    return EvaluationSet(name, Dataset.from_dict(columns, features=FEATURES), [Prompt(row[0], (1,)) for row in rows])


def make_evaluator(*sets: EvaluationSet, num_samples: int = 4) -> Evaluator:
    return Evaluator(sets, num_samples=num_samples, temperature=1.0, top_p=1.0, max_completion_length=12, by_level=True)


@pytest.fixture(scope="module")
def grader():
    with Grader(num_workers=1) as grader:
        yield grader


@pytest.fixture(scope="module")
def evaluated(grader) -> tuple[pd.DataFrame, pd.DataFrame]:
    reciter = Reciter({row[0]: row[4] for row in ROWS}, truncated=["five", "no"])
    return make_evaluator(evaluation_set("all four", ROWS), evaluation_set("easy", ROWS[:1])).evaluate(
        reciter, grader, seed=0
    )


def test_a_row_per_problem(evaluated):
    per_problem, _ = evaluated
    assert per_problem["set"].tolist() == ["all four"] * 4 + ["easy"]
    assert per_problem["id"].tolist() == ["a", "b", "c", "d", "a"]
    assert per_problem["level"].tolist() == [1, 4, 4, 5, 1]
    assert per_problem["subject"].fillna("none").tolist() == ["Algebra", "Algebra", "Geometry", "none", "Algebra"]
    assert per_problem["n"].tolist() == [4] * 5
    assert per_problem["correct"].tolist() == [3, 1, 0, 4, 3]
    assert per_problem["no_answer"].tolist() == [1, 1, 1, 0, 1]
    assert per_problem["truncated"].tolist() == [1, 1, 0, 0, 1]
    assert per_problem["timeout"].tolist() == per_problem["error"].tolist() == [0] * 5


def test_a_row_per_answer(evaluated):
    _, answers = evaluated
    assert len(answers) == 20
    of_set = answers[answers["set"] == "all four"]
    assert of_set["text"].tolist() == [text for row in ROWS for text in row[4]]
    assert of_set["sample"].tolist() == [0, 1, 2, 3] * 4
    assert of_set["answer"].tolist() == [row[3] for row in ROWS for _ in range(4)]
    right = of_set[of_set["verdict"] == "correct"]
    assert right.groupby("id").size().to_dict() == {name: count for name, count in CORRECT.items() if count}
    assert of_set["finish_reason"].tolist().count("length") == 2
    assert of_set["length"].tolist() == [2, 1] * 8
    assert of_set["confidence"].tolist() == pytest.approx([0.36787944] * 16)  # exp(-1), whatever the length


def test_metrics_have_the_fields_names_and_are_means_over_problems(evaluated):
    metrics = compute_metrics(evaluated[0])
    # Of 3, 1, 0 and 4 right of 4: pass@1 3/4, 1/4, 0, 1; pass@2 1, 1/2 (3 of 6 pairs), 0, 1; pass@4 1, 1, 0, 1.
    expected = {
        "eval/all four/pass@1": 2 / 4,
        "eval/all four/pass@2": 2.5 / 4,
        "eval/all four/pass@4": 3 / 4,
        "eval/all four/level_1/pass@1": 3 / 4,
        "eval/all four/level_4/pass@1": 1 / 8,
        "eval/all four/level_4/pass@2": 1 / 4,
        "eval/all four/level_4/pass@4": 1 / 2,
        "eval/all four/level_5/pass@4": 1,
        "eval/all four/levels_4-5/pass@1": 1.25 / 3,
        "eval/all four/levels_4-5/pass@4": 2 / 3,
        "eval/all four/subject_Algebra/pass@1": 1 / 2,
        "eval/all four/subject_Geometry/pass@4": 0,
        "eval/easy/pass@1": 3 / 4,
        "eval/all four/no_answer_rate": 3 / 16,
        "eval/all four/truncated_rate": 2 / 16,
        "eval/all four/timeout_rate": 0,
        "eval/easy/error_rate": 0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    parts = {name.split("/")[2] for name in metrics if name.startswith("eval/all four/") and name.count("/") == 3}
    assert parts == {"level_1", "level_4", "level_5", "levels_4-5", "subject_Algebra", "subject_Geometry"}
    assert not any("levels_4-5" in name for name in metrics if name.startswith("eval/easy"))


def test_without_levels_only_the_levels_are_missing(evaluated):
    with_levels, without = (compute_metrics(evaluated[0], by_level=by_level) for by_level in (True, False))
    assert set(with_levels) - set(without) == {name for name in with_levels if re.search(r"/levels?_", name)}
    assert without == {name: with_levels[name] for name in without}


def test_slices_take_each_problem_where_it_belongs(evaluated):
    per_problem = evaluated[0][:4]
    parts = {name: members["id"].tolist() for name, members in iterate_slices(per_problem)}
    assert next(iter(parts)) == ""
    assert parts == {
        "": ["a", "b", "c", "d"],
        "level_1": ["a"],
        "level_4": ["b", "c"],
        "level_5": ["d"],
        "levels_4-5": ["b", "c", "d"],
        "subject_Algebra": ["a", "b"],
        "subject_Geometry": ["c"],
    }


def test_problems_without_a_level_are_in_no_level(grader):
    rows = [("x", None, None, "1", [box("1"), box("2")]), ("y", 5, None, "1", [box("1"), box("1")])]
    reciter = Reciter({row[0]: row[4] for row in rows})
    per_problem, _ = make_evaluator(evaluation_set("s", rows), num_samples=2).evaluate(reciter, grader, seed=0)
    parts = {name: members["id"].tolist() for name, members in iterate_slices(per_problem)}
    assert parts == {"": ["x", "y"], "level_5": ["y"], "levels_4-5": ["y"]}
    assert compute_metrics(per_problem)["eval/s/pass@1"] == 0.75


def test_each_set_has_a_seed_of_its_own_that_follows_the_seed(grader):
    def seeds(seed: int) -> list[int]:
        reciter = Reciter({"a": ROWS[0][4]})
        sets = (evaluation_set(name, ROWS[:1]) for name in ("one", "other"))
        make_evaluator(*sets).evaluate(reciter, grader, seed)
        return reciter.seeds

    assert len(set(seeds(0))) == 2
    assert seeds(0) == seeds(0) != seeds(1)


def test_evaluation_of_the_tiny_model(tiny, grader):
    model, tokenizer = tiny
    problems, prompts, _ = encode_problems(load_problems("arithmetic", split="test", size=5), tokenizer, PromptFormat())
    evaluator = make_evaluator(EvaluationSet("arithmetic", problems, prompts))
    sampler = TransformersSampler(model, tokenizer, max_num_seqs=64)
    per_problem, answers = evaluator.evaluate(sampler, grader, seed=0)
    assert per_problem["level"].tolist() == problems["level"][:]
    assert (answers["length"] <= 12).all()
    recounted = [
        sum(re.findall(r"\\boxed\{ (\d+) \}", text)[-1:] == [gold] for text in texts)
        for (_, gold), texts in answers.groupby(["id", "answer"], sort=False)["text"]
    ]
    assert per_problem["correct"].tolist() == recounted
    again, _ = evaluator.evaluate(sampler, grader, seed=0)
    pd.testing.assert_frame_equal(per_problem, again)
    assert {f"eval/arithmetic/level_{level}/pass@4" for level in range(1, 6)} <= set(compute_metrics(per_problem))


@pytest.mark.parametrize(("num_samples", "temperature"), [(0, 1.0), (4, 0.0)])
def test_an_evaluation_that_makes_no_sense_is_refused(num_samples, temperature):
    with pytest.raises(ConfigError, match=f"evaluation.num_samples={num_samples}"):
        Evaluator([], num_samples, temperature, top_p=1.0, max_completion_length=4, by_level=True)


# --- the table ---


def counts(correct: Sequence[int], samples: int = 4, name: str = "s") -> pd.DataFrame:
    """The rows of an evaluation with these numbers of right answers."""
    rows = [
        {"set": name, "id": str(place), "level": 1 + place % 5, "subject": None, "n": samples, "correct": right}
        | dict.fromkeys(("truncated", "no_answer", "timeout", "error", "bad_gold"), 0)
        for place, right in enumerate(correct)
    ]
    return pd.DataFrame(rows).astype({"level": "Int64"})


def test_answers_that_could_not_be_judged_are_wrong_and_counted():
    verdicts = ["correct", "timeout", "error", "incorrect", "bad_gold", "timeout", "no_answer", "correct"]
    answers = pd.DataFrame({"verdict": verdicts, "set": "s", "id": list("aaaabbbb"), "sample": [*range(4)] * 2})
    answers = answers.assign(level=1, subject=None, finish_reason="stop").astype({"level": "Int64"})
    per_problem = count_per_problem(answers)
    assert per_problem[["correct", "timeout", "error", "bad_gold"]].values.tolist() == [[1, 1, 1, 0], [1, 1, 0, 1]]
    metrics = compute_metrics(per_problem)
    assert metrics["eval/s/pass@1"] == 0.25
    rates = {name: metrics[f"eval/s/{name}_rate"] for name in ("timeout", "error", "bad_gold", "unjudged")}
    assert rates == {"timeout": 2 / 8, "error": 1 / 8, "bad_gold": 1 / 8, "unjudged": 4 / 8}
    assert make_table(per_problem)["unjudged"].tolist()[0] == 4


def interval(cell: str) -> tuple[float, float, float]:
    mean, low, high = map(float, re.fullmatch(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", cell).groups())
    return mean, low, high


def test_pass_at_ks_has_a_column_for_each_k_that_all_problems_allow():
    mixed = pd.concat([counts([1, 2]), counts([4], samples=8)])
    assert list(pass_at_ks(mixed).columns) == [1, 2, 4]
    assert pass_at_ks(counts([1, 2]))[2].tolist() == pytest.approx([1 / 2, 5 / 6])


def test_table_has_a_row_for_each_part_and_percent(evaluated):
    table = make_table(evaluated[0])
    of_set = table[table["set"] == "all four"].set_index("part")
    assert list(of_set.index)[:5] == ["all", "level_1", "level_4", "level_5", "levels_4-5"]
    assert of_set["problems"].tolist()[:5] == [4, 1, 2, 1, 3]
    assert of_set["truncated"].tolist()[:5] == [2, 1, 1, 0, 1]
    assert interval(of_set.loc["all", "pass@2"])[0] == 62.5
    assert interval(of_set.loc["level_5", "pass@1"]) == (100, 100, 100)  # one problem tells of no spread
    assert list(make_table(evaluated[0], by_level=False)["part"]) == [
        "all",
        "subject_Algebra",
        "subject_Geometry",
        "all",
        "subject_Algebra",
    ]


def test_intervals_hold_the_mean_and_have_the_width_of_theory():
    # 400 problems, half of them always and half never right: the mean has the standard error 50/sqrt(400) = 2.5 points.
    mean, low, high = interval(make_table(counts([0, 4] * 200), by_level=False)["pass@1"][0])
    assert mean == 50
    assert low < 50 < high
    assert (high - low) / (2 * 1.96 * 2.5) == pytest.approx(1, abs=0.12)


def test_more_problems_narrow_the_interval_and_none_of_it_is_outside_of_the_possible():
    def width(problems: int) -> float:
        _, low, high = interval(make_table(counts([0, 1, 4] * problems), by_level=False)["pass@1"][0])
        assert 0 <= low <= high <= 100
        return high - low

    assert width(100) < width(25) < width(4)
    assert interval(make_table(counts([4] * 30))["pass@4"][0]) == (100, 100, 100)
    assert interval(make_table(counts([0] * 30))["pass@4"][0]) == (0, 0, 0)


def test_the_table_is_the_same_every_time():
    pd.testing.assert_frame_equal(make_table(counts([0, 1, 2, 4] * 9)), make_table(counts([0, 1, 2, 4] * 9)))
