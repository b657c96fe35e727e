"""The supervised warm-up: what it minimises, what it saves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lens.models.loading import load_model
from lens.problems.prompts import Prompt
from lens.sampling.rollouts import Rollouts
from lens.training.supervised import iterate_batches, teach
from tests.support.command_line import run
from tests.support.losses import plain_pass


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Sums in MATH's form that the tiny model has words for; Level 2 has a solution that is longer."""
    file = tmp_path / "rows.jsonl"
    lines = []
    for a in range(2, 8):
        for b in range(2, 8):
            longer = a == b
            steps = f"{a} + {b} = {a + b} , " * (3 if longer else 1)
            row = {"problem": f"Compute $ {a} + {b} $ .", "solution": steps + rf"\boxed{{ {a + b} }}"}
            lines.append(json.dumps(row | {"type": "Algebra", "level": f"Level {2 if longer else 1}"}))
    file.write_text("\n".join(lines) + "\n")
    return file


def test_every_place_comes_once_before_any_comes_again():
    batches = list(iterate_batches(10, 4, 5, seed=1))
    assert [len(batch) for batch in batches] == [4] * 5
    drawn = [place for batch in batches for place in batch]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10)) and drawn[:10] != drawn[10:]
    assert batches == list(iterate_batches(10, 4, 5, seed=1)) != list(iterate_batches(10, 4, 5, seed=2))


def test_the_loss_is_transformers_own_cross_entropy_of_the_solutions(tiny_folder: Path):
    model, _ = load_model(str(tiny_folder))
    prompts, answers = [[5, 6, 7], [8, 9]], [[10, 11, 12, 13], [14, 15]]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(a) for a in answers], batch_first=True)
    lessons = Rollouts(
        [Prompt(str(n), tuple(prompt)) for n, prompt in enumerate(prompts)],
        1,
        ids,
        torch.zeros(ids.shape),
        torch.tensor([4, 2]),
        ["stop"] * 2,
        ["", ""],
    )
    expected, tokens = 0.0, 6
    for prompt, answer in zip(prompts, answers, strict=True):
        whole = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        expected += model(input_ids=whole, labels=labels).loss.item() * len(answer) / tokens
    settings = {"learning_rate": 1e-3, "adam_betas": [0.9, 0.999], "adam_eps": 1e-8, "weight_decay": 0.0}
    optimizer = OmegaConf.create({**settings, "max_grad_norm": 1.0, "lr_scheduler": "constant", "warmup_steps": 0})
    passes = plain_pass(temperature=1.0, max_tokens_per_microbatch=7)
    first, second = teach(model, lessons, passes, optimizer, steps=2, batch_size=2, seed=0)
    assert first == pytest.approx(expected, rel=1e-5) and second < first


def warm_up(rows: Path, tiny_folder: Path, into: Path, *overrides: str, logs: Path):
    keys = [
        f"dataset.math.path={rows}",
        f"model.name_or_path={tiny_folder}",
        f"into={into}",
        "model.prompt.max_length=64",
    ]
    return run("scripts/warm_up.py", *keys, "model.prompt.instruction=null", *overrides, folder=logs)


def test_a_model_learns_the_solutions_and_is_saved_whole(rows, tiny_folder, tmp_path):
    into = tmp_path / "models" / "warm"
    choices = ["steps=30", "batch_size=8", "optimizer.learning_rate=2e-3", "dataset.math.levels=[1]"]
    result = warm_up(rows, tiny_folder, into, *choices, logs=tmp_path / "logs")
    assert result.code == 0, result.stderr
    assert result.stdout.strip().endswith(str(into))
    record = json.loads((into / "warm_up.json").read_text())
    assert record["solutions"] == 30 and len(record["losses"]) == 30
    assert record["losses"][-1] < 0.5 * record["losses"][0]
    assert record["config"]["model"]["name_or_path"] == str(tiny_folder)
    model, tokenizer = load_model(str(into))
    assert tokenizer.eos_token == "<eos>" and model.num_parameters() == load_model(str(tiny_folder))[0].num_parameters()
    again = warm_up(rows, tiny_folder, into, *choices, logs=tmp_path / "logs")
    assert again.code == 2 and "must be a folder that does not exist yet" in again.stderr


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["steps=0"], "steps=0: must be an integer >= 1"),
        (["batch_size=100"], "batch_size=100: must be at most 36, the solutions left"),
        (["max_solution_length=3"], "max_solution_length=3: must be at least"),
        (["model.dtype=bfloat16"], "model.dtype='bfloat16': must be float32"),
        (["dataset=countdown"], "dataset.countdown.source='countdown': must be math"),
    ],
)
def test_what_cannot_work_ends_in_a_line(rows, tiny_folder, tmp_path, overrides, says):
    if overrides == ["dataset=countdown"]:
        keys = [f"model.name_or_path={tiny_folder}", f"into={tmp_path / 'm'}", *overrides]
        result = run("scripts/warm_up.py", *keys, folder=tmp_path / "logs")
    else:
        result = warm_up(rows, tiny_folder, tmp_path / "m", *overrides, logs=tmp_path / "logs")
    assert result.code == 2 and says in result.stderr, result.stderr
    assert not (tmp_path / "m").exists()
