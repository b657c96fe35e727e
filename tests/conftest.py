"""What tests share: no network, one thread, and a tiny model that is made once a session."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start; matrices are too small to share

import pytest
import torch
from hypothesis import settings
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lens.models.loading import load_model
from lens.models.tiny import TinyRecipe, make_tiny
from lens.training.experience import Experience
from tests.support.command_line import make_pupil
from tests.support.gradients import sample_experience

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with Ctrl-C ignored
# How long an example takes says more of the machine than of the code. The examples are the same every time.
settings.register_profile("lens", deadline=None, derandomize=True)
settings.load_profile("lens")
torch.set_num_threads(1)


# Files that take longest come first, so that no worker is left with one of them at the end.
LONGEST = (
    "cli/test_sweeps.py",
    "sampling/test_vllm_engines.py",
    "distributed/test_several_processes.py",
    "distributed/test_many_processes.py",
    "training/test_trainer.py",
    "training/test_stopped_runs.py",
    "training/test_resumed_runs.py",
    "training/test_kills.py",
    "grading/test_pool.py",
    "configs/test_experiments.py",
    "models/test_lora.py",
    "cli/test_refusals.py",
    "cli/test_entry_point.py",
    "benchmarking/test_benchmark.py",
    "models/test_fetching.py",
    "sampling/test_vllm.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first; the order inside a file stays."""
    places = {str(Path(__file__).parent / name): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


@pytest.fixture(scope="session", autouse=True)
def litter(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Temporary files of commands, and of those that are killed above all, go where pytest cleans up.

    So do compiled kernels: those of another session may be for another processor.
    """
    os.environ["TMPDIR"] = tempfile.tempdir = str(tmp_path_factory.mktemp("tmp"))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(tempfile.tempdir, "torchinductor")


@pytest.fixture(scope="session")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that end-to-end tests train; leave it as it is."""
    return make_pupil(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of a test file print, a pair of files each."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def tiny_recipe() -> TinyRecipe:
    """A model that is made in two seconds: it ends some answers, and cannot do arithmetic."""
    return TinyRecipe(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2, steps=30, batch_size=64)


@pytest.fixture(scope="session")
def tiny_folder(tiny_recipe: TinyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hugging Face folder of that model; leave it as it is."""
    return make_tiny(tiny_recipe, tmp_path_factory.mktemp("models"))


@pytest.fixture
def tiny(tiny_folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """That model in float32, freshly loaded, and its tokenizer."""
    return load_model(str(tiny_folder))


@pytest.fixture(scope="module")
def experience(tiny_folder: Path) -> Experience:
    """Answers of that model, graded and weighed, to take gradients of."""
    return sample_experience(tiny_folder)
