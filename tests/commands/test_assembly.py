"""What a run needs is looked for before anything is read or made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from hydra.core.hydra_config import HydraConfig
from transformers import LlamaConfig, MambaConfig

from lens.commands.assembly import check_inputs, longest_evaluation_sequence, longest_sequence
from lens.errors import ConfigError
from lens.problems import mixture, upstream
from lens.problems.prompts import Prompt
from tests.support.command_line import environment, run, training
from tests.support.configs import composed

MATH = "dataset=math", "evaluation=math500"


@pytest.fixture(autouse=True)
def nothing_is_read(tmp_path, monkeypatch):
    """No test may read a data set: the cache stays empty, and whoever loads one fails."""

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("a data set was read")

    for owner, name in ((upstream, "load_dataset"), (upstream, "load_dataset_builder"), (mixture, "load_problems")):
        monkeypatch.setattr(owner, name, fail)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    yield
    assert not (tmp_path / "cache").exists()
    HydraConfig.instance().cfg = None


@pytest.fixture
def rows(tmp_path) -> Path:
    """A file with one problem, which nobody reads."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "1 + 1", "answer": "2"}) + "\n")
    return tmp_path / "rows.jsonl"


def refusal(*overrides: object) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        check_inputs(composed(*map(str, overrides)))
    assert "\n" not in str(error.value)
    return error.value


def test_what_is_there_is_taken(tiny_folder, rows):
    files = [f"dataset.math.path={rows}", f"evaluation.sets.math500.path={rows}"]
    check_inputs(composed(f"model.name_or_path={tiny_folder}", *MATH, *files))
    check_inputs(composed())  # the tiny model is made where it is not there, and arithmetic has no file


def test_a_model_that_has_to_be_fetched_is_named_with_the_command_that_does(tmp_path):
    absent = f"dataset.math.path={tmp_path}/absent.jsonl"
    found = refusal("model=smollm2", f"outputs={tmp_path}", *MATH, absent)
    assert (found.key, found.value) == ("model.name_or_path", f"{tmp_path}/models/SmolLM2-135M-Instruct")
    assert "python scripts/fetch_model.py model=smollm2" in found.valid


def test_a_model_that_is_not_there_comes_before_files_that_are_not(tmp_path):
    absent = f"{tmp_path}/absent.jsonl"
    found = refusal("model=hf", f"model.name_or_path={tmp_path}/absent", *MATH, f"dataset.math.path={absent}")
    assert found.key == "model.name_or_path"
    (tmp_path / "empty").mkdir()
    found = refusal("model=hf", f"model.name_or_path={tmp_path}/empty", *MATH, f"dataset.math.path={absent}")
    assert "config.json" in found.valid


@pytest.mark.parametrize("name", ["absent.jsonl", "empty.jsonl", "rows.txt", "folder", "absent*.parquet"])
def test_a_file_that_cannot_be_read_is_refused_by_its_key(tmp_path, rows, name):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "rows.txt").write_text("no rows")
    (tmp_path / "folder").mkdir()
    bad, good = tmp_path / name, rows
    of_both = refusal(*MATH, f"dataset.math.path={bad}", f"evaluation.sets.math500.path={bad}")
    assert (of_both.key, of_both.value) == ("dataset.math.path", str(bad))
    of_one = refusal(*MATH, f"dataset.math.path={good}", f"evaluation.sets.math500.path={bad}")
    assert (of_one.key, of_one.value) == ("evaluation.sets.math500.path", str(bad))


def test_a_rollout_engine_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "lens.sampling.vllm", raising=False)
    for option in ("vllm", "vllm_gpu"):
        found = refusal(f"sampler={option}")
        assert (found.key, found.value) == ("sampler", "vllm")
        assert "make setup VLLM=cpu" in found.valid
    found = refusal("sampler._target_=nowhere.at.Engine")
    assert (found.key, found.value) == ("sampler._target_", "nowhere.at.Engine")


def test_a_sequence_longer_than_the_model_is_refused_by_the_key_of_its_length():
    model = SimpleNamespace(config=LlamaConfig(max_position_embeddings=64))
    without_limit = SimpleNamespace(config=MambaConfig())
    prompts = [Prompt("short", (1,)), Prompt("long", (1, 2, 3, 4))]
    evaluator = SimpleNamespace(sets=[SimpleNamespace(prompts=prompts)], max_completion_length=60)
    assert longest_sequence(model, prompts, 60) == longest_evaluation_sequence(model, evaluator) == 64
    assert longest_sequence(without_limit, prompts, 10_000) == 10_004
    evaluator.max_completion_length = 61
    for key, refuse in (
        ("trainer.rollouts.max_completion_length", lambda: longest_sequence(model, prompts, 61)),
        ("evaluation.max_completion_length", lambda: longest_evaluation_sequence(model, evaluator)),
    ):
        with pytest.raises(ConfigError) as error:
            refuse()
        said = "must be at most 60: the model's limit is 64 tokens, and the longest prompt, long, has 4"
        assert str(error.value).startswith(f"{key}=61: {said}; ")


def test_the_command_refuses_a_missing_file_before_it_reads_any(pupil, logs, tmp_path):
    """Where the evaluation's file is missing too, the training problems' comes first; neither is read."""
    cache, outputs = tmp_path / "hf", tmp_path / "outputs"
    absent = [f"{tmp_path}/train.jsonl", f"{tmp_path}/test.jsonl"]
    files = [f"dataset.math.path={absent[0]}", f"evaluation.sets.math500.path={absent[1]}"]
    command = [o for o in training(pupil, outputs) if "arithmetic" not in str(o)]
    env = environment(HF_DATASETS_CACHE=str(cache))
    result = run(*command, *MATH, *files, folder=logs, real=True, env=env)
    assert result.code == 2
    assert result.one_line() == f"error: dataset.math.path='{absent[0]}': there is no such file"
    assert not cache.exists() or not list(cache.rglob("*"))
    assert not outputs.exists()
