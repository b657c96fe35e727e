"""The layers of the house, as `make lint` checks them: they hold, and an upward import is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from lens.files import SOURCE


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
