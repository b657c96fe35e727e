"""What the docs say can be typed and clicked: commands compose, links resolve, every objective has its page."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lens.config.callables import check_loss, check_objective
from lens.files import CONFIGS

ROOT = CONFIGS.parent
FOLDERS = ("configs", "docs", "lens", "scripts", "tests")
PAGES = [*ROOT.glob("*.md"), ROOT / "outputs" / "README.md", *(f for d in FOLDERS for f in (ROOT / d).rglob("*.md"))]
OBJECTIVES = sorted(file.stem for file in (CONFIGS / "objective").glob("*.yaml"))
LOSSES = sorted(file.stem for file in (CONFIGS / "loss").glob("*.yaml") if file.stem != "base")
INDEX = ROOT / "docs" / "objectives" / "README.md"
HEADINGS = ["Overview", "Formula", "Usage", "Logged metrics", "Implementation details", "Results"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCED.sub("", page.read_text())


def fenced(page: Path, language: str = "") -> list[str]:
    """The contents of a page's fenced blocks of a language."""
    return [match[2] for match in FENCED.finditer(page.read_text()) if match[1] == language]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands_of(page: Path) -> list[str]:
    """Every `python scripts/...` in a page's blocks and backticks."""
    in_blocks = [line for block in fenced(page) for line in block.splitlines() if line.startswith("python scripts/")]
    return in_blocks + [" ".join(span.split()) for span in re.findall(r"`(python scripts/[^`]+)`", prose(page))]


COMMANDS = sorted({command for page in PAGES for command in commands_of(page)})


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# --- objectives ------------------------------------------------------------------------------------------------------


def test_the_index_and_the_readme_have_every_objective():
    rows = re.findall(r"^\| \[`(\w+)`\]\((\w+\.md)(?:#(\w+))?\)", INDEX.read_text(), re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == OBJECTIVES
    for name, page, anchor in rows:
        assert f"../../configs/objective/{name}.yaml" in (INDEX.parent / page).read_text()
        assert anchor in ("", name)
    assert {page for _, page, _ in rows} == {page.name for page in INDEX.parent.glob("*.md")} - {INDEX.name}
    for name in OBJECTIVES:
        assert f"`{name}`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", sorted({*INDEX.parent.glob("*.md")} - {INDEX}), ids=lambda page: page.stem)
def test_a_page_of_an_objective_has_its_headings_in_order(page):
    assert re.findall(r"^## (.+)$", prose(page), re.MULTILINE) == HEADINGS


# --- losses ----------------------------------------------------------------------------------------------------------


def test_the_page_of_losses_has_a_row_and_a_part_for_every_loss():
    page = ROOT / "docs" / "losses.md"
    rows = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\)", page.read_text(), re.MULTILINE)
    assert sorted(name for name, _ in rows) == LOSSES
    assert all(name == anchor for name, anchor in rows)
    for name in LOSSES:
        part = page.read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert f"../lens/losses/{name}.py" in part and f"../configs/loss/{name}.yaml" in part
        own = set(OmegaConf.load(CONFIGS / "loss" / f"{name}.yaml")) - {"defaults", "_target_", "_partial_"}
        assert set(re.findall(r"`loss\.(\w+)`", part)) == own


def test_the_page_s_own_loss_can_be_used():
    (example,) = fenced(ROOT / "docs" / "losses.md", "python")
    names: dict = {}
    exec(example, names)
    check_loss(functools.partial(names["my_loss"], floor=0.1), token_level=True)
    (config,) = fenced(ROOT / "docs" / "losses.md", "yaml")
    assert OmegaConf.create(config)._target_ == "lens.losses.mine.my_loss"


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """A folder of configs with the README's own example of an objective, and the world of docs/worlds.md."""
    (example,) = (b for b in fenced(ROOT / "README.md", "yaml") if b.startswith("# configs/objective/mine.yaml"))
    folder = tmp_path_factory.mktemp("configs")
    (folder / "objective").mkdir()
    (folder / "objective" / "mine.yaml").write_text(example)
    (folder / "world").mkdir()
    (folder / "world" / "coins.yaml").write_text(*fenced(ROOT / "docs" / "worlds.md", "yaml"))
    return folder


def test_there_are_commands():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command, mine):
    """Each value of each key of a sweep once; an ellipsis stands for any name."""
    _, script, *words = shlex.split(command, comments=True)
    assert (ROOT / script).is_file()
    if any(word.startswith("--") for word in words):
        return  # Hydra's own options
    typed = [word.replace("…", "x") for word in words if word not in ("-m", "…")]
    overrides = OverridesParser.create().parse_overrides(typed)
    values = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line]
        for o in overrides
    ]
    assert "-m" in words or not any(o.is_sweep_override() for o in overrides)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for n in range(max(map(len, values), default=1)):
            job = [options[min(n, len(options) - 1)] for options in values]
            compose(Path(script).stem, overrides=[*job, f"hydra.searchpath=[file://{mine}]"])


def test_the_readme_s_own_objective_weighs_groups():
    (example,) = (b for b in fenced(ROOT / "README.md", "python") if b.startswith("# lens/objectives/mine.py"))
    names: dict = {}
    exec(example, names)
    check_objective(functools.partial(names["my_advantages"], boost=0.1))
