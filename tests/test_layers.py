"""The shape of the code: its layers, as `make lint` checks them, and the length of files and functions."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lens.files import SOURCE

FILES = sorted(file for folder in ("lens", "scripts", "hydra_plugins") for file in (SOURCE / folder).rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 300, 60  # lines


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_each_folder_imports_only_from_folders_below_it():
    result = lint_imports(SOURCE)
    assert result.returncode == 0, result.stdout


def test_an_upward_import_is_found(tmp_path: Path):
    for name in ("lens", "hydra_plugins", "pyproject.toml"):
        copy = shutil.copytree if (SOURCE / name).is_dir() else shutil.copy
        copy(SOURCE / name, tmp_path / name)
    with (tmp_path / "lens" / "sampling" / "rollouts.py").open("a") as module:
        module.write("\n\nfrom lens.training.update import Loss  # noqa\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    assert "lens.sampling is not allowed to import lens.training" in result.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_and_functions_fit_a_few_screens(file):
    source = file.read_text()
    assert len(source.splitlines()) <= LONGEST_FILE
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    long = {node.name: length for node in functions if (length := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION}
    assert not long
