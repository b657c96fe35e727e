"""No code of a model's folder or of a data set's repository is run, even where somebody answers yes."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from lens.errors import ConfigError
from lens.files import SOURCE
from lens.models.loading import load_model
from lens.problems import load_problems
from tests.support.command_line import ROOT, Result, environment, run, training

LOADERS = {"from_pretrained", "from_config", "LLM"}  # the functions of transformers and vLLM that would run such code
HARMLESS = {"GenerationConfig.from_pretrained"}  # it reads numbers alone


def test_every_call_that_loads_something_says_so():
    calls = [
        (file, node)
        for file in [*SOURCE.glob("lens/**/*.py"), *SOURCE.glob("scripts/*.py"), *SOURCE.glob("hydra_plugins/*.py")]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) not in HARMLESS
        if ast.unparse(node.func).rpartition(".")[2] in LOADERS
    ]
    assert len(calls) >= 8
    for file, node in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("trust_remote_code") == "False", f"{file}:{node.lineno}"


@pytest.fixture(scope="module")
def marker(tmp_path_factory) -> Path:
    """The file that the code would write."""
    return tmp_path_factory.mktemp("marker") / "ran"


@pytest.fixture(scope="module")
def folders(tiny_folder, marker, tmp_path_factory) -> dict[str, Path]:
    """Models whose config, model or tokenizer comes with code of its own, by that part."""
    changes = {
        "config": ("config.json", {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}),
        # transformers knows these configs, but no causal model of a ViT, and no tokenizer for Bloom
        "model": ("config.json", {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "code.Mine"}}),
        "tokenizer": (
            "tokenizer_config.json",
            {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}},
        ),
    }
    made = {}
    for part, (file, values) in changes.items():
        made[part] = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("models") / part)
        change(made[part] / file, values)
        (made[part] / "code.py").write_text(f"open({str(marker)!r}, 'w')\nclass Mine: pass\n")
    change(made["tokenizer"] / "config.json", {"model_type": "bloom"})
    return made


def change(file: Path, values: dict) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


COMMANDS = ("scripts/train.py", "scripts/evaluate.py", "scripts/plan.py")
CASES = [case for case in product(COMMANDS, ("config", "model", "tokenizer")) if case != (COMMANDS[2], "tokenizer")]


@pytest.fixture(scope="module")
def ended(folders, logs, tmp_path_factory) -> dict[tuple[str, str], tuple[Result, Path]]:
    """How each command ended that was given each folder and a yes to every question; two run at a time."""

    def attempt(case: tuple[str, str]) -> tuple[Result, Path]:
        script, part = case
        outputs = tmp_path_factory.mktemp("outputs") / "outputs"
        command = {
            "scripts/train.py": training(folders[part], outputs),
            "scripts/evaluate.py": [script, f"checkpoint={folders[part]}", f"outputs={outputs}"],
            "scripts/plan.py": [script, "model=hf", f"model.name_or_path={folders[part]}"],
        }[script]
        return run("tests/support/saying_yes.py", *command, folder=logs / "-".join(case).replace("/", "-")), outputs

    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(CASES, pool.map(attempt, CASES), strict=True))


def assert_refused(result: Result, key: str, folder: Path, marker: Path) -> None:
    """The command ended with one line, exit code 2, no question and no marker."""
    assert result.code == 2, result.stdout + result.stderr
    line = result.stderr.removesuffix("\n")
    assert "\n" not in line
    assert line.startswith(f"error: {key}='{folder}': must be a causal language model by name or folder, without code")
    assert "contains custom code" in line
    assert "Do you wish" not in result.stdout
    assert not marker.exists()


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_model_with_code_of_its_own_is_refused_though_somebody_says_yes(ended, folders, marker, case):
    script, part = case
    result, outputs = ended[case]
    key = "checkpoint" if script == "scripts/evaluate.py" else "model.name_or_path"
    assert_refused(result, key, folders[part], marker)
    assert not outputs.exists()


def test_a_piped_yes_is_not_read(folders, marker, tmp_path):
    command = [sys.executable, *map(str, training(folders["config"], tmp_path / "outputs"))]
    done = subprocess.run(command, input="y\n" * 20, capture_output=True, text=True, cwd=ROOT, env=environment())
    result = Result(done.returncode, done.stdout, done.stderr)
    assert_refused(result, "model.name_or_path", folders["config"], marker)


def test_code_that_is_not_needed_is_left_alone(folders, tiny_folder, tmp_path, marker):
    """transformers knows the architecture by itself, as of many models whose folders still have code from before."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    names = ("AutoConfig", "AutoModelForCausalLM")
    change(folder / "config.json", {"auto_map": dict.fromkeys(names, "code.Mine")})
    shutil.copy(folders["config"] / "code.py", folder)
    assert type(load_model(str(folder))[0]).__name__ == "LlamaForCausalLM"
    assert not marker.exists()


def test_a_data_set_with_a_loading_script_is_refused(tmp_path, marker):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(
        ConfigError, match=r"must be a repository of data files, as no code of a repository is run"
    ) as e:
        load_problems("math", repo=str(tmp_path / "mine"))
    assert (e.value.key, e.value.value) == ("dataset.math.repo", str(tmp_path / "mine"))
    assert not marker.exists()
