"""The page: one document without a network, and every number of its group browser from the stored answers."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from lens.reporting.finding_runs import load_arms
from lens.reporting.page.browser import FIELDS, choose_runs
from lens.reporting.report import report
from tests.support.run_folders import SEEDS, SKILL, TEXTS, G, add_rollouts, make_run

VOID = {"meta", "img", "br"}


class Document(HTMLParser):
    """Elements with their attributes, scripts by id, and text; refuses what is not nested well."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            key = self.elements[-1][1].get("id", "code")
            self.scripts[key] = self.scripts.get(key, "") + data
        elif self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Path, Path]:
    """Two arms of four seeds with rollouts, and their report."""
    base = tmp_path_factory.mktemp("page")
    for objective in SKILL:
        for seed in SEEDS:
            folder = make_run(base / "runs" / f"{objective}-{seed}", objective, seed)
            add_rollouts(folder, objective, seed=seed)
    (base / "runs" / "<b>empty").mkdir()
    return base / "runs", report([base / "runs"], "grpo", base / "report", completions=10000)


@pytest.fixture(scope="module")
def document(reported) -> Document:
    return Document(reported[1].read_text())


def test_the_page_stands_alone(document):
    for tag, attributes in document.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, value)
    policy = next(a["content"] for t, a in document.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    style_and_code = document.scripts["code"]
    assert not re.search(
        r"fetch\(|XMLHttpRequest|import\(|innerHTML|outerHTML|document\.write|insertAdjacentHTML|eval\(", style_and_code
    )
    assert set(re.findall(r"https?://[^\s\"']+", style_and_code)) == {"http://www.w3.org/1998/Math/MathML"}  # a name


def test_links_lead_to_places_in_the_page(document):
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in document.elements if tag == "a"]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert {"#results", "#setting1", "#paper", "#compute", "#groups"} == set(links)


def test_many_settings_are_listed_apart_and_many_notes_folded(tmp_path):
    for number in range(7):
        for objective in ("grpo", "lens"):
            config = {"dataset": {"size": number}}
            made = {"config": config, "choices": {"experiment": f"sizes{number}"}}
            make_run(tmp_path / "runs" / f"{objective}-{number}", objective, 0, f"dataset.size={number}", **made)
    text = report([tmp_path / "runs"], "grpo", tmp_path / "report", completions=0).read_text()
    document = Document(text)
    title = next(line for line in document.text.splitlines() if line.startswith("Report: "))
    assert title == "Report: sizes0 and 6 other experiments"
    assert "14 finished runs of 14 arms." in document.text
    bar, rest = text.split("</nav>", 1)
    assert re.findall(r'href="(#\w+)"', bar) == ["#settings", "#results", "#paper", "#compute"]
    listed = rest.split("<h2", 2)[1]
    assert re.findall(r'href="(#\w+)"', listed) == [f"#setting{number}" for number in range(1, 9)]  # the map's is one
    assert re.search(r"<summary>\d+ notes</summary>\s*<ul class=\"notes\">", rest)


def test_what_models_and_folders_say_is_text(document, reported):
    scripts = [attributes for tag, attributes in document.elements if tag == "script"]
    assert len(scripts) == 1 + 4 + 1  # the index, two steps of two runs, the code
    assert sum(attributes.get("type") is None for attributes in scripts) == 1
    assert not any(tag == "img" and "onerror" in attributes for tag, attributes in document.elements)
    assert "<b>empty: empty" in document.text


def test_each_number_of_the_browser_is_that_of_the_stored_answers(document, reported):
    """Advantages by hand: the paper's section 5, from verdict and confidence alone."""
    index = json.loads(document.scripts["browser-index"])
    assert tuple(index["fields"]) == FIELDS
    assert [(run["label"], run["seed"]) for run in index["runs"]] == [("grpo", 0), ("lens", 0)]
    for run in index["runs"]:
        for step in run["steps"]:
            file = reported[0] / f"{run['label']}-0" / "rollouts" / f"step_{step['step']:06d}.parquet"
            stored = pd.read_parquet(file).set_index(["problem_id", "sample"])
            shown = json.loads(document.scripts[step["key"]])
            assert sum(len(group["answers"]) for group in shown) == len(stored)
            for group in shown:
                check_group(group, stored.loc[group["id"]])


def check_group(group: dict, stored: pd.DataFrame) -> None:
    answers = pd.DataFrame(group["answers"], columns=list(FIELDS)).set_index("sample")
    assert list(answers["confidence"]) == sorted(answers["confidence"], reverse=True)
    assert group["level"] == (None if pd.isna(stored["level"].iloc[0]) else stored["level"].iloc[0])
    assert group["gold"] == "7"
    answers = answers.loc[stored.index]
    for name in ("verdict", "valid", "length", "finish_reason", "text"):
        assert list(answers[name]) == list(stored[name])
    assert answers["trained"].to_numpy() == pytest.approx(stored["advantage"].to_numpy(), rel=1e-5)
    assert answers["confidence"].to_numpy() == pytest.approx(stored["confidence"].to_numpy(), rel=1e-5)
    judged = stored[stored["valid"]]
    right, confidence, size = judged["verdict"] == "correct", judged["confidence"].astype(float), len(judged)
    kind = "positive" if right.all() else "mixed" if right.any() else "negative"
    assert group["kind"] == kind
    difficulty = 2 * confidence.max()
    if right.any():
        difficulty = max(difficulty, size / (right / confidence).sum())
    rewards = right - ~right * confidence / (difficulty - confidence) / size
    spread = {"mixed": rewards.std() + 1e-6, "negative": 1 / 0.25, "positive": math.inf}[kind]
    lens = (rewards - rewards.mean()) / spread
    grpo = (right - right.mean()) / (right.astype(float).std() + 1e-6)
    for name, expected in (("reward", rewards), ("lens", lens), ("grpo", grpo)):
        shown = answers[name]
        assert shown[judged.index].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-4, abs=1e-6)
        assert (shown.drop(judged.index) == 0).all()  # what the grader could not judge teaches nothing


def test_the_tables_of_the_page_are_those_of_the_files(document, reported):
    folder = reported[1].parent
    results = pd.read_csv(folder / "results.csv")
    accuracy = pd.read_csv(folder / "accuracy.csv").set_index(["part", "arm"])
    for _, row in results.iterrows():
        same = accuracy.loc[("all", row["algorithm"])]
        assert row["pass@1"] == same["pass@1"]
        assert f"{row['pass@1']:.1f} ± {row['pass@1 half-width']:.1f}" in document.text
    difference = pd.read_csv(folder / "difference.csv")
    for _, row in difference.iterrows():
        assert f"{row['pass@2']:+.1f} ± {row['pass@2 half-width']:.1f}" in document.text
        assert f"[{row['pass@2 low']:+.1f}, {row['pass@2 high']:+.1f}]" in document.text
    assert document.text.count("missing") >= 2 * 5 * 4
    for published in ("54.09", "83.20", "86.28"):
        assert published in document.text


def test_the_figures_of_the_page_are_the_files(document, reported):
    images = [attributes for tag, attributes in document.elements if tag == "img"]
    files = sorted(reported[1].parent.glob("*.png"))
    assert len(images) == len(files) == 6  # these runs stored no answers of evaluations, so no histogram
    assert all(attributes["alt"] for attributes in images)
    assert all(file.with_suffix(".pdf").exists() for file in files)


def test_the_browser_holds_no_more_answers_than_asked(reported):
    arms, _ = load_arms([reported[0]])
    runs, _ = choose_runs(arms, 2 * 30)
    assert [[chunk.step for chunk in run.chunks] for run in runs] == [[1], [1]]
    for run in runs:
        (chunk,) = run.chunks
        assert sum(len(group["answers"]) for group in chunk.groups) == 30 // G * G
    runs, _ = choose_runs(arms, 10000)
    assert [[chunk.step for chunk in run.chunks] for run in runs] == [[1, 11], [1, 11]]


def test_rollouts_that_cannot_be_read_are_named(tmp_path):
    folder = make_run(tmp_path / "run", "lens", 0)
    add_rollouts(folder, "lens")
    (folder / "rollouts" / "step_000021.parquet").write_bytes(b"PAR1 half")
    (run,), notes = choose_runs(load_arms([tmp_path])[0], 1000)
    assert [chunk.step for chunk in run.chunks] == [1, 11]
    assert len(notes) == 1
    assert "step_000021.parquet" in notes[0]
    assert TEXTS[1] in {answer[FIELDS.index("text")] for group in run.chunks[0].groups for answer in group["answers"]}
