"""The wheel with torch alone: objectives and integrations work, and the commands say in one line what they lack."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from lens.files import SOURCE
from lens.integrations import group_advantages

# torch and what it imports. The file or folder of each is linked into the empty environment.
TORCH = (
    *("torch", "torchgen", "functorch", "typing_extensions.py", "filelock", "fsspec", "sympy", "mpmath", "networkx"),
    *("jinja2", "markupsafe", "nvidia", "triton"),
)
OF_RUNS = ("hydra", "omegaconf", "numpy", "datasets", "transformers", "pandas", "vllm", "wandb", "trl", "verl")
PROGRAM = f"""
import importlib.util, json
import torch
import lens.errors, lens.integrations, lens.objectives
rewards, means = torch.tensor([1.0, 0, 0, 0]), torch.tensor([-1.0, -2, -3, -4])
weighed = lens.integrations.group_advantages(rewards, list("abab"), means)
found = [name for name in {OF_RUNS!r} if importlib.util.find_spec(name)]
print(json.dumps({{"advantages": weighed.tolist(), "found": found, "at": lens.__file__}}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this project, built from a copy, as building leaves files behind."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("lens", "hydra_plugins"):
        shutil.copytree(SOURCE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SOURCE / name, folder)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", folder]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = (folder / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of an environment with this wheel, torch, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    interpreter = folder / "bin" / "python"
    (site,) = (folder / "lib").glob("python*/site-packages")
    for name in TORCH:
        if (package := Path(torch.__file__).parents[1] / name).exists():
            (site / name).symlink_to(package)
    command = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True, capture_output=True)
    return interpreter


def run(python: Path, *arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([python, *arguments], cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_the_wheel_and_torch_compute_lens(python, tmp_path):
    result = run(python, "-c", PROGRAM, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    expected = group_advantages(torch.tensor([1.0, 0, 0, 0]), list("abab"), torch.tensor([-1.0, -2, -3, -4]))
    assert said["advantages"] == expected.tolist() and expected.count_nonzero() == 4
    assert said["found"] == [] and said["at"].startswith(str(python.parents[1]))


def test_a_command_says_in_one_line_what_it_lacks(python):
    result = run(python, SOURCE / "scripts" / "train.py", folder=SOURCE)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: hydra is not installed: the commands need pip install 'lens-rl[train]'\n"


def test_the_wheel_asks_for_torch_and_for_the_rest_only_as_extras(wheel):
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = files.read(name).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert [line.split()[1][:5] for line in required if "extra ==" not in line] == ["torch"]
    assert "Provides-Extra: train" in metadata.splitlines()
