"""Builds the site from the files that a git host shows: formulas become MathML, linked repository files become pages.

A page links to source files relative to itself, as in `../../lens/objectives/lens.py`. The site holds the docs folder
alone, so each file that some page links to is added to it below `repository/`, and the links are turned to it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS, ADDED = "docs", "repository"
# Files that the navigation names, whether a page links to them or not.
ALWAYS = {"CHANGELOG.md", "outputs/README.md"}
FENCED = re.compile(r"^(```+)[^\n]*\n.*?^\1[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".toml": "toml"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Turn blocks marked as math into MathML, which browsers show without a script."""
    fence = {"name": "math", "class": "math", "format": format_math}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def format_math(source: str, *_: Any, **__: Any) -> str:
    """A formula in LaTeX as MathML."""
    return convert(source.strip(), display="block")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each repository file that a page links to."""
    waiting = [f"{DOCS}/{file.src_uri}" for file in files.documentation_pages()] + sorted(ALWAYS)
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        if not page.startswith(f"{DOCS}/"):
            files.append(File.generated(config, place_of(page), content=content_of(page)))
        if page.endswith(".md"):
            found = {target for link in links_of(page) if (target := target_of(page, link))} - seen
            waiting += [target for target in found if not target.startswith(f"{DOCS}/")]
            seen |= found
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links to repository files to their pages in the site."""
    here = page.file.src_uri
    origin = here.removeprefix(f"{ADDED}/") if here.startswith(f"{ADDED}/") else f"{DOCS}/{here}"
    if not origin.endswith(".md") or (here.startswith(f"{ADDED}/") and not (ROOT / origin).is_file()):
        return markdown

    def turn(match: re.Match[str]) -> str:
        target = target_of(origin, match[2])
        if target is None:
            return match[0]
        return match[1] + os.path.relpath(place_of(target), PurePosixPath(here).parent) + match[3]

    pieces, last = [], 0
    for block in FENCED.finditer(markdown):
        pieces += [LINK.sub(turn, markdown[last : block.start()]), block[0]]
        last = block.end()
    return "".join([*pieces, LINK.sub(turn, markdown[last:])])


def links_of(page: str) -> list[str]:
    """The targets of a page's links, without those in fenced blocks."""
    return [match[2] for match in LINK.finditer(FENCED.sub("", (ROOT / page).read_text()))]


def target_of(page: str, link: str) -> str | None:
    """The repository file that a relative link on a page names; None for an address, or where there is no such file."""
    path = os.path.normpath(PurePosixPath(page).parent / link)
    return path if "://" not in link and (ROOT / path).is_file() else None


def place_of(path: str) -> str:
    """Where a repository file lies in the site."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    return f"{ADDED}/{path}" + ("" if path.endswith(".md") else ".md")


def content_of(path: str) -> str:
    """The page of a repository file: Markdown as it is, anything else as a block of code."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    front = "---\nsearch:\n  exclude: true\nhide: [toc]\n---\n"
    return f"{front}# {path}\n\n~~~~{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}~~~~\n"
