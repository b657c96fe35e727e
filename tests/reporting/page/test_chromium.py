"""Clicks through the page in a real browser: `make page-test`. `make test` reads the document alone."""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from lens.files import write_parquet
from lens.reporting.report import report
from lens.training.stored_experience import name_group_kinds
from tests.support.chromium import MISSING, Chromium
from tests.support.command_line import make_pupil, run, training
from tests.support.run_folders import SKILL, TEXTS, G, add_rollouts, make_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}; Debian's packages: chromium chromium-driver"),
]

MATHML = [
    (r"$\frac{1}{2}$", "mfrac", "12"),
    (r"so \boxed{\dfrac{3}{4}} it is", "mfrac", "so 34 it is"),
    (r"\(x^2_1 \le \sqrt[3]{y}\)", "msubsup", "x12≤y3"),
    (r"\[\begin{pmatrix} a & b \\ c & d \end{pmatrix}\]", "mtable", "(abcd)"),
    (r"$$\begin{cases} 1 & x > 0 \\ 0 \end{cases}$$", "mtable", "{1x>00"),
    (r"27 \bmod 4 = 3 , \boxed{ 16 }", "math", "27 mod 4 = 3 , 16"),
    (r"$ 4 $ to $ 21 $", "mn", "4 to 21"),
    (r"$5 and more", None, "$5 and more"),
    (r"\text{an apple} $\pi r$", "mtext", "an apple πr"),
    (r"$\constructor{x} \begin{toString} y \end{toString}$", "mtext", r"\constructorxy"),
    (r"$\binom{5}{2} \pmod 7$", "mfrac", "(52) (mod 7)"),
    ("{" * 500 + r"$" + "{" * 500 + "$", None, "{" * 500 + "{" * 500),
    (r"\frac" * 300, None, None),
    ("$<script>document.title='broken'</script>$", "mo", "<script>document.title=′broken′</script>"),
]

LONG = "We have $x^{2} = \\frac{1}{2}$, so the next step follows. " * 20  # as long as answers to MATH are


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    browser = Chromium()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("page")
    for objective in SKILL:
        add_rollouts(make_run(base / "runs" / objective, objective, 0), objective, questions=40)
    return base / "runs", report([base / "runs"], "grpo", base / "report", completions=10000)


def test_three_clicks_lead_from_a_level_to_one_confident_wrong_answer(chromium, reported):
    runs, page = reported
    chromium.open(page)
    assert chromium.run("return document.querySelectorAll('.group').length") == 0
    chromium.click(".level[data-level='5']")
    chromium.click(".group")
    chromium.click("tr.answer")
    stored = pd.read_parquet(runs / "grpo" / "rollouts" / "step_000001.parquet")
    stored = stored[stored["level"] == 5]
    wrong = stored.groupby("problem_id").filter(lambda group: not (group["verdict"] == "correct").any())
    surest = wrong.loc[wrong["confidence"].idxmax()]
    assert chromium.text(".group[aria-pressed='true'] .kind") == "negative"
    assert chromium.text("tr.open td").endswith(f"{surest['confidence']:.3f}")
    assert "incorrect" in chromium.text("tr.open")
    chromium.click("button.raw")
    assert chromium.text(".completion") == surest["text"]
    assert chromium.complaints() == []


def test_the_numbers_on_the_screen_are_those_of_the_parquet(chromium, reported):
    runs, page = reported
    stored = pd.read_parquet(runs / "lens" / "rollouts" / "step_000011.parquet").set_index(["problem_id", "sample"])
    for problem, group in stored.groupby("problem_id"):
        level = "none" if pd.isna(group["level"].iloc[0]) else group["level"].iloc[0]
        chromium.open(page, f"#groups/1/11/{level}/{urllib.parse.quote(problem, safe='')}")
        shown = chromium.run(
            "return [...document.querySelectorAll('tr.answer')]"
            ".map(row => [row.dataset.sample, ...[...row.cells].map(cell => cell.textContent)])"
        )
        assert len(shown) == G
        for sample, confidence, grade, reward, grpo, lens, trained, tokens in shown:
            row = stored.loc[(problem, int(sample))]
            numbers = [float(text.strip("▸▾").replace("−", "-")) for text in (confidence, reward, lens, trained)]
            expected = [row["confidence"], row["calibrated_reward"], row["advantage"], row["advantage"]]
            assert numbers == pytest.approx(expected, rel=6e-3, abs=1e-9)
            assert grade.startswith(row["verdict"])
            assert int(tokens) == row["length"]
            if (group["verdict"] != "correct").all():
                assert grpo == "0"


def test_the_counts_on_the_screen_are_those_of_the_parquet(chromium, reported):
    """Groups and negative ones of each level; of each group how many are right, and how sure the surest wrong is."""
    runs, page = reported
    stored = pd.read_parquet(runs / "lens" / "rollouts" / "step_000011.parquet")
    kinds = dict(zip(stored["problem_id"].unique(), name_group_kinds(stored), strict=True))
    stored["level"] = stored["level"].astype(object).where(stored["level"].notna(), "none").astype(str)
    levels = stored.groupby("problem_id")["level"].first()
    for level, problems in levels.groupby(levels):
        chromium.open(page, f"#groups/1/11/{level}")
        shown = chromium.text(f".level[data-level='{level}']")
        numbers = [int(text) for text in re.findall(r"\d+", shown.removeprefix(f"Level {level}"))]
        assert numbers == [len(problems), sum(kinds[problem] == "negative" for problem in problems.index)]
        listed = chromium.run(
            "return [...document.querySelectorAll('.group')].map(node => [node.dataset.group,"
            " node.querySelector('.kind').textContent, node.querySelector('small').textContent])"
        )
        assert {problem for problem, _, _ in listed} == set(problems.index)
        for problem, kind, told in listed:
            group = stored[stored["problem_id"] == problem]
            wrong = group[group["verdict"].isin(["incorrect", "no_answer", "timeout", "error"])]
            assert kind == kinds[problem]
            assert told.startswith(f"{(group['verdict'] == 'correct').sum()} of {G} right")
            if len(wrong):
                assert float(told.split("surest wrong ")[1]) == pytest.approx(wrong["confidence"].max(), rel=6e-3)


def test_what_a_model_wrote_stays_text(chromium, reported):
    runs, page = reported
    stored = pd.read_parquet(runs / "grpo" / "rollouts" / "step_000001.parquet")
    for text in TEXTS:
        row = stored[(stored["text"] == text) & stored["level"].notna()].iloc[0]
        place = f"#groups/0/1/{row['level']}/{urllib.parse.quote(row['problem_id'], safe='')}/{row['sample']}"
        chromium.open(page, place)
        assert chromium.run("return document.title").startswith("Report:")
        assert chromium.run("return document.querySelectorAll('.completion img, .completion script').length") == 0
        chromium.click("button.raw")
        assert chromium.text(".completion") == text
    assert chromium.complaints() == []


@pytest.mark.parametrize(("source", "tag", "text"), MATHML, ids=[case[0][:30] for case in MATHML])
def test_latex_is_readable(chromium, reported, source, tag, text):
    chromium.open(reported[1])
    found = chromium.run(
        "const box = document.createElement('div'); box.append(Latex.render(arguments[0]));"
        "return [[...box.querySelectorAll('*')].map(node => node.localName), box.textContent]",
        source,
    )
    assert tag is None or tag in found[0]
    if text is not None:
        assert re.sub(r"[\s\u00a0]+", "", found[1]) == re.sub(r"[\s\u00a0]+", "", text)


def made_up(folder: Path) -> None:
    """Answers of about 1,500 characters."""
    for objective in SKILL:
        made = make_run(folder / objective, objective, 0)
        add_rollouts(made, objective, steps=(1, 5, 9, 13, 17), questions=250)
        for file in (made / "rollouts").iterdir():
            rows = pd.read_parquet(file)
            rows.assign(text=(rows["text"] + r" so $x_{1} = \frac{2}{3}$, and then").str.repeat(30)).to_parquet(file)


def real(folder: Path) -> None:
    """Answers of two runs of a small model, of 25 steps each."""
    pupil = make_pupil(folder.parent)
    sizes = {"max_steps": 25, "num_prompts_per_rollout": 20, "num_prompts_per_step": 20, "num_generations": 10}
    for objective in SKILL:
        given = (f"objective={objective}", "evaluation.every=0", f"hydra.run.dir={folder / objective}")
        result = run(*training(pupil, folder.parent, *given, **sizes), folder=folder.parent / "logs")
        assert result.code == 0, result.stderr


@pytest.mark.parametrize("answers_of", [made_up, real])
def test_ten_thousand_answers_are_quick(chromium, tmp_path, answers_of):
    """Opening the page, and clicking on a level, a group and an answer."""
    answers_of(tmp_path / "runs")
    page = report([tmp_path / "runs"], "grpo", tmp_path / "report", completions=10000)
    chromium.open(page)
    opened = chromium.run("return performance.getEntriesByType('navigation')[0].domComplete")
    times = chromium.run(
        "const spent = []; for (const selector of [\".level[data-level='5']\", '.group', 'tr.answer']) {"
        "  const start = performance.now(); document.querySelector(selector).click();"
        "  document.body.getBoundingClientRect(); spent.push(performance.now() - start); } return spent"
    )
    index = chromium.run("return JSON.parse(document.getElementById('browser-index').textContent)")
    answers = chromium.run(
        "return arguments[0].flatMap(key => JSON.parse(document.getElementById(key).textContent))"
        ".reduce((sum, group) => sum + group.answers.length, 0)",
        [step["key"] for each in index["runs"] for step in each["steps"]],
    )
    assert answers == 10000
    told = f"{page.stat().st_size / 1e6:.1f} MB; opened in {opened:.0f} ms; clicks {[round(t) for t in times]} ms"
    print(told)
    assert opened < 5000, told
    assert max(times) < 1000, told


def test_a_page_with_ten_thousand_long_answers_opens_within_two_seconds(chromium, tmp_path):
    for objective in SKILL:
        folder = make_run(tmp_path / "runs" / objective, objective, 0)
        add_rollouts(folder, objective, steps=tuple(range(1, 26)), questions=50)
        for file in (folder / "rollouts").iterdir():
            rows = pd.read_parquet(file)
            write_parquet(file, rows.assign(text=[f"{text} {LONG}" for text in rows["text"]]))
    page = report([tmp_path / "runs"], "grpo", tmp_path / "report", completions=10_000)
    chromium.open(page)
    assert "10,000" in chromium.text("body")
    opened = chromium.run("const [t] = performance.getEntriesByType('navigation'); return t.loadEventEnd - t.startTime")
    chosen = chromium.run(
        "const start = performance.now(); document.querySelector(\".level[data-level='5']\").click();"
        "document.querySelector('.group').click(); return performance.now() - start"
    )
    print(f"{page.stat().st_size / 1e6:.1f} MB opened in {opened:.0f} ms, a level and a group in {chosen:.0f} ms")
    assert 0 < opened < 2000 and chosen < 2000
