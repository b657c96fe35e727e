"""Makes a report of finished runs: tables in the terminal and as files, figures, and one page with all of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lens.config.checks import check_writable
from lens.errors import ConfigError
from lens.reporting.arms import Arm, make_setting_title
from lens.reporting.comparability import check_baseline
from lens.reporting.effect_map import MIDDLE, draw_map, map_table, name_cell
from lens.reporting.export import write_table
from lens.reporting.figures import draw_figures
from lens.reporting.finding_runs import load_arms
from lens.reporting.league import draw_league, league_sentence, league_table
from lens.reporting.page.browser import choose_runs
from lens.reporting.page.page import Captioned, Section, write_page
from lens.reporting.pairing import split_by_baseline
from lens.reporting.paper import TABLES, compare_with_paper, has_runs
from lens.reporting.tables import (
    EDGE_STEPS,
    accuracy_table,
    compute_table,
    difference_table,
    gain_table,
    results_table,
    runs_table,
    signal_table,
)
from lens.terminal import show_table

ACCURACY = "Accuracy on held-out problems in % (mean ± 95 % t interval over seeds)"
SIGNAL = f"Signal of negative groups in %, and cost (start and end: {EDGE_STEPS} steps)"
DIFFERENCE = (
    "Difference to {} in points, paired by seed: ± 95 % t interval over seeds, [95 % bootstrap interval over seeds and "
    "problems]; undecided where one of them includes zero. Where there is no true difference, up to about one entry in "
    "twenty still comes out as decided"
)
GAIN = (
    "Gain over the model before training in points: ± 95 % t interval over seeds, [bootstrap over seeds and problems]"
)
MAP = (
    "When does it help? Points above {} at the same setting, and of LENS above each control, paired by seed: ± 95 % t "
    "interval, [bootstrap]; negative groups and their share of the gradient in %, entropy at the end in nats"
)
LEAGUE = (
    "League: points above {}, paired by seed: ± 95 % t interval over seeds, [bootstrap over seeds and problems]; "
    "p-values of a paired t test after Holm's correction over the whole table; differences at equal tokens and equal "
    "time; entropy at the end in nats, share of |A| in negative groups in %, seconds a step"
)
COMPUTE = "Compute spent, summed over runs"
RUNS = "runs.csv"  # pass@k of single runs


def report(runs: Sequence[Path], baseline: str | None, target: Path, *, completions: int) -> Path:
    """Print the tables of all finished runs below some folders, and write tables, figures and the page.

    Args:
        runs: folders that hold run folders, at any depth.
        baseline: the arm that others are compared with; None leaves out the differences.
        target: the folder to write to. If there are several settings, each gets a folder in it.
        completions: how many answers the page's browser shows, at most.

    Returns:
        The path of the page.

    Raises:
        ConfigError: there are no finished runs, arms cannot be compared, the baseline is unknown, or the target cannot
            be written to.
    """
    if type(completions) is not int or completions < 0:
        raise ConfigError("completions", completions, "must be an integer >= 0")
    arms, notes = load_arms(runs)
    alike = [[a for a in arms if a.setting == setting] for setting in dict.fromkeys(a.setting for a in arms)]
    settings = [part for members in alike for part in split_by_baseline(members, baseline)]
    notes += check_baseline(settings, baseline)
    browsed, unread = choose_runs(arms, completions) if completions else ([], [])
    notes += unread
    for note in notes:
        print(f"note: {note}")
    check_writable("target", target)

    titles = [make_title(members, arms) for members in settings]
    places = zip(settings, titles, name_folders(titles), strict=True)
    written = [
        report_setting(members, baseline, title, target / name, is_titled=len(settings) > 1)
        for members, title, name in places
    ]
    sections, files = [part.section for part in written], [line for part in written for line in part.files]
    headlines = [part.headline for part in written if part.headline]
    if mapped := report_map(arms, baseline, target):
        sections.insert(0, mapped[0])
        files += mapped[1]

    results = results_table(settings)
    write_table(results, "Accuracy after training in %", target / "results")
    paper = report_paper(arms, target)
    files.append(list_files("tables", target, ["results", *(table.name for table in TABLES)], "csv,md,tex"))
    page = write_page(
        target / "index.html",
        headlines=headlines,
        notes=notes,
        results=results,
        sections=sections,
        paper=paper,
        paper_runs=has_runs(arms),
        compute=[(title, part.compute) for title, part in zip(titles, written, strict=True)],
        arms=arms,
        browsed=browsed,
    )
    # With more settings, the tables say it.
    verdicts = verdict_lines(difference_table(settings[0], baseline), baseline) if len(settings) == 1 else []
    print("\n".join([*files, f"page:    {page}", *headlines, *verdicts]))
    return page


def verdict_lines(differences: pd.DataFrame, baseline: str | None) -> list[str]:
    """Say in words, a line for each arm and evaluation set, whether its pass@1 differs from the baseline's."""
    if differences.empty:
        return []
    whole = differences[differences["part"].str.endswith("all")]
    of_set = whole["part"].str.removesuffix("all").str.removesuffix(": ")
    return [
        f"{arm} over {baseline}{name and f' on {name}'}: {cell.sentence}"
        for arm, name, cell in zip(whole["arm"], of_set, whole["pass@1"], strict=True)
    ]


class Written(NamedTuple):
    """What was written about a setting.

    Attributes:
        section: its section of the page.
        compute: the table of compute spent.
        files: lines that name the files.
        headline: who won, in a sentence; empty if there are too few arms for a league.
    """

    section: Section
    compute: pd.DataFrame
    files: list[str]
    headline: str


def report_setting(arms: Sequence[Arm], baseline: str | None, title: str, folder: Path, *, is_titled: bool) -> Written:
    """Print and write the tables of one setting and draw its figures."""
    folder.mkdir(exist_ok=True)
    tables = make_tables(arms, baseline)
    if is_titled:
        print(f"\n{title}")
    for stem, (caption, table) in tables.items():
        show_table(caption, shorten_for_terminal(table))
        write_table(table, f"{title}: {caption}", folder / stem)
    runs_table(arms).to_csv(folder / RUNS, index=False)
    figures = draw_figures(arms, folder)
    headline = ""
    if "league" in tables:
        league = tables["league"][1]
        headline = league_sentence(league, baseline)
        figures = {"League": draw_league(league, folder / "league_of_objectives")} | figures
    opened = [tables[stem] for stem in ("league", "difference", "signal") if stem in tables]
    files = [
        list_files("tables", folder, tables, "csv,md,tex"),
        list_files("figures", folder, figures.values(), "png,pdf"),
        f"{'runs:':<8} {folder / RUNS}",
    ]
    return Written(Section(title, opened, tables["accuracy"], figures), tables["compute"][1], files, headline)


def report_paper(arms: Sequence[Arm], target: Path) -> list[Captioned]:
    """Write the paper's tables with our runs beside, and print them if there are runs of the paper's experiments."""
    paper = [(table.caption, compare_with_paper(table, arms)) for table in TABLES]
    for table, (caption, beside) in zip(TABLES, paper, strict=True):
        write_table(beside, caption, target / table.name)
        if has_runs(arms):
            show_table(caption, beside)
    return paper


def report_map(arms: Sequence[Arm], baseline: str | None, target: Path) -> tuple[Section, list[str]] | None:
    """Print, write and draw the map of differences.

    Returns:
        The section of the page, and lines that name the files; None if there is no map.
    """
    mapped = map_table(arms, baseline)
    if not spans_cells(mapped):
        return None
    caption, figure = MAP.format(baseline), draw_map(mapped, target / "map_of_differences")
    show_table(caption, mapped)
    write_table(mapped, caption, target / "map")
    files = [list_files("tables", target, ["map"], "csv,md,tex"), list_files("figures", target, [figure], "png,pdf")]
    return Section("Map", [(caption, mapped)], None, {"Differences, cell by cell": figure}, is_wide=True), files


def make_tables(arms: Sequence[Arm], baseline: str | None) -> dict[str, Captioned]:
    """Make the tables of one setting, by the name of their files; empty ones are left out."""
    differences = difference_table(arms, baseline)
    tables = {
        "accuracy": (ACCURACY, accuracy_table(arms)),
        "gain": (GAIN, gain_table(arms)),
        "league": (LEAGUE.format(baseline), league_table(arms, baseline, differences)),
        "difference": (DIFFERENCE.format(baseline), differences),
        "signal": (SIGNAL, signal_table(arms)),
        "compute": (COMPUTE, compute_table(arms)),
    }
    return {stem: (caption, table) for stem, (caption, table) in tables.items() if len(table)}


def spans_cells(mapped: pd.DataFrame) -> bool:
    """Return whether a map has more than one cell; a smaller one repeats the table of differences."""
    return len(mapped) > 0 and mapped["cell"].nunique() > 1


def list_files(what: str, folder: Path, names: Iterable[str | Path], kinds: str) -> str:
    """Return a line that names files in a shell's notation: figures: report/{a,b}.{png,pdf}."""
    stems = ",".join(Path(name).stem for name in names)
    return f"{what + ':':<8} {folder}/{f'{{{stems}}}' if ',' in stems else stems}.{{{kinds}}}"


def make_title(members: Sequence[Arm], arms: Sequence[Arm]) -> str:
    """Name a setting, with its cell of the map if all its arms share one other than the middle."""
    cell, *others = {name_cell(arm, arms) for arm in members}
    return make_setting_title(members) if others or cell == MIDDLE else f"{make_setting_title(members)} · {cell}"


def name_folders(titles: Sequence[str]) -> list[str]:
    """Return the name of each setting's folder below the target; it is empty for a single setting."""
    if len(titles) == 1:
        return [""]
    plain = [re.sub(r"[^\w.-]+", "_", title) for title in titles]
    return [name if plain.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(plain, 1)]


def shorten_for_terminal(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table for the terminal; tables of differences keep only the first and the last k."""
    ks = [name for name in table.columns if name.startswith("pass@")]
    return table.drop(columns=ks[1:-1]) if "problems" in table.columns else table
