"""DAPO-Math-17k: a hundred repetitions, an instruction around each problem, conflicting answers, Chinese."""

from __future__ import annotations

import logging

import pytest

from lens.errors import ConfigError
from lens.problems import load_problems


def test_the_instruction_is_taken_off_exactly(write, dapo_row):
    problem = "\n Solve the following. Answer: is no part of the instruction \n\n"
    problems = load_problems("dapo", path=write([dapo_row(problem, "-3", "9a9b6eb4")]))
    row = {"problem": problem, "answer": "-3", "level": None, "subject": None, "id": "9a9b6eb4", "source": "dapo"}
    assert problems[0] == row


def test_a_prompt_without_the_instruction_is_kept_as_it_is_with_a_warning(write, dapo_row, caplog):
    bare = dapo_row()
    bare["prompt"][0]["content"] = "What is $2 + 2$?"
    assert load_problems("dapo", path=write([dapo_row(index="b"), bare]))["problem"][1] == "What is $2 + 2$?"
    assert "1 prompts lack upstream's instruction" in caplog.text


def test_the_hundredfold_repetition_counts_once(write, dapo_row, caplog):
    caplog.set_level(logging.INFO)
    rows = [dapo_row("a", index="1"), dapo_row("b", index="2"), dapo_row("c", index="3")] * 100
    problems = load_problems("dapo", path=write(rows, "rows.parquet"))
    assert problems["problem"][:] == ["a", "b", "c"]
    assert "300 rows read" in caplog.text and "297 dropped (297 row repeated), 3 kept" in caplog.text


def test_a_problem_under_two_indices_is_two_rows_and_one_problem(write, dapo_row, caplog):
    caplog.set_level(logging.INFO)
    path = write([dapo_row("a b", index="1"), dapo_row("a  b\n", index="2"), dapo_row("c", index="3")])
    assert load_problems("dapo", path=path)["id"][:] == ["1", "2", "3"]
    assert load_problems("dapo", path=path, deduplicate="problem")["id"][:] == ["1", "3"]
    assert "1 dropped (1 problem repeated), 2 kept" in caplog.text
    with pytest.raises(ConfigError, match=r"dataset\.dapo\.deduplicate='rows'.*row or problem"):
        load_problems("dapo", path=path, deduplicate="rows")


def test_problems_with_conflicting_answers_are_dropped_and_counted(write, dapo_row, caplog):
    caplog.set_level(logging.INFO)
    rows = [dapo_row("a b", "1", "1"), dapo_row("c", "1", "2"), dapo_row("a  b", "2", "3"), dapo_row("a b", "1", "4")]
    path = write(rows)
    assert load_problems("dapo", path=path)["problem"][:] == ["c"]
    assert "3 dropped (3 conflicting answer), 1 kept" in caplog.text
    assert load_problems("dapo", path=path, drop_conflicting=False)["id"][:] == ["1", "2", "3", "4"]
    both = load_problems("dapo", path=path, drop_conflicting=False, deduplicate="problem")
    assert both["id"][:] == ["1", "2", "3"]


def test_chinese_problems_are_counted_and_kept_unless_the_config_drops_them(write, dapo_row, caplog):
    caplog.set_level(logging.INFO)
    path = write([dapo_row("求 $1 + 1$", index="1"), dapo_row("Where are “quotes” and é?", index="2")])
    assert len(load_problems("dapo", path=path)) == 2
    assert "0 dropped, 2 kept (among them 1 in Chinese)" in caplog.text
    assert load_problems("dapo", path=path, drop_chinese=True)["id"][:] == ["2"]
    assert "1 dropped (1 in Chinese), 1 kept" in caplog.text


def test_numbers_serve_as_indices_too(write, dapo_row):
    rows = [dapo_row("a", index=2), dapo_row("b", index=25)]
    assert load_problems("dapo", path=write(rows))["id"][:] == ["2", "25"]


def test_one_index_for_two_problems_is_refused(write, dapo_row):
    with pytest.raises(ConfigError, match=r"row 2 .*'a' has occurred before"):
        load_problems("dapo", path=write([dapo_row("a"), dapo_row("b")]))


def test_errors_name_the_row_in_the_file_when_rows_before_it_were_repetitions(write, dapo_row):
    rows = [dapo_row("a", index="1")] * 3 + [dapo_row("b", answer=" ", index="2")]
    with pytest.raises(ConfigError, match=r"rows\.jsonl.*row 4 .*answer is empty"):
        load_problems("dapo", path=write(rows), drop_empty=False)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "row 2 .*not one chat message"),
        ([{"content": "x", "role": "system"}, {"content": "y", "role": "user"}], "row 2 .*not one chat message"),
        ([{"content": None, "role": "user"}], "row 2 .*no content"),
        (None, "row 2 .*not one chat message"),
        ("x", r"row 2 \(rows\.jsonl, line 2\): prompt is 'x', of another type than in the rows before"),
    ],
)
def test_a_prompt_is_one_chat_message(write, dapo_row, prompt, message):
    with pytest.raises(ConfigError, match=message):
        load_problems("dapo", path=write([dapo_row(), dapo_row(index="b") | {"prompt": prompt}]))


def test_prompts_that_are_plain_texts_are_refused(write, dapo_row):
    with pytest.raises(ConfigError, match="must hold lists of one chat message"):
        load_problems("dapo", path=write([dapo_row() | {"prompt": "What is $1 + 1$?"}]))


def test_a_nested_column_that_is_missing_is_named(write, dapo_row):
    row = dapo_row() | {"reward_model": {"style": "rule"}}
    with pytest.raises(ConfigError, match=r"rows\.jsonl.*no column reward_model\.ground_truth"):
        load_problems("dapo", path=write([row]))
