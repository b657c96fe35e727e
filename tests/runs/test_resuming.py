"""Which checkpoint a run goes on from, and which it refuses."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from pathlib import Path

import pytest
from torch.optim import AdamW

from lens import __version__
from lens.errors import ConfigError
from lens.files import write_json
from lens.problems.worlds import arithmetic
from lens.runs.checkpoints import REPLACED, restore_replaced_name, save_checkpoint
from lens.runs.resuming import check_config, check_prompts, find_state, read_finished_summary
from lens.runs.run import PROVENANCE, SUMMARY
from tests.support.command_line import (
    assert_one_wandb_run,
    make_pupil,
    metrics_of,
    run,
    training,
)

CONFIG = {
    "seed": 0,
    "resume": "auto",
    "outputs": "outputs",
    "profile": False,
    "tracking": {"wandb": {"mode": "auto"}},
    "objective": {"alpha": 0.25},
    "optimizer": {"lr_scheduler": "constant", "learning_rate": 0.1},
    "trainer": {"max_steps": 4, "memory": {"max_tokens_per_microbatch": 90}},
}


def changed(**values: object) -> dict:
    """CONFIG with other values; `trainer__seed` is the key trainer.seed."""
    config = copy.deepcopy(CONFIG)
    for key, value in values.items():
        *sections, name = key.split("__")
        node = config
        for section in sections:
            node = node[section]
        node[name] = value
    return config


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """A run folder with checkpoints of steps 2 and 4."""
    for step in (2, 4):
        save_checkpoint(
            tmp_path / "checkpoints",
            *tiny,
            AdamW(tiny[0].parameters()),
            {"step": step, "config": CONFIG, "prompts": {}},
            keep=2,
        )
    return tmp_path


def cut(checkpoint: Path, name: str = "model.safetensors") -> Path:
    data = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(data[: len(data) // 2])
    return checkpoint


# --- which checkpoint ------------------------------------------------------------------------------------------------


def test_the_last_one_is_taken(folder, tmp_path):
    for resume in ("auto", "must", str(tmp_path / "elsewhere")):
        checkpoint, state = find_state(folder, changed(resume=resume))
        assert checkpoint == folder / "checkpoints" / "step_000004"
        assert state["step"] == 4


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt", "checksums.json"])
def test_a_truncated_one_is_passed_over_with_a_warning_unless_it_must_be_the_last(folder, caplog, name):
    damaged = cut(folder / "checkpoints" / "step_000004", name)
    checkpoint, state = find_state(folder, changed())
    assert (checkpoint.name, state["step"]) == ("step_000002", 2)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(damaged) in record.message
    assert "trying step_000002" in record.message
    with pytest.raises(ConfigError, match="step_000004"):
        find_state(folder, changed(resume="must"))
    cut(folder / "checkpoints" / "step_000002")
    with pytest.raises(ConfigError, match="step_000002"):  # rather than starting anew over them
        find_state(folder, changed())


def test_a_new_folder_starts_from_a_run_or_a_checkpoint(folder, tmp_path):
    new = tmp_path / "new"
    assert find_state(new, changed()) is None
    assert find_state(new, changed(resume=str(folder)))[1]["step"] == 4
    copied = shutil.copytree(folder / "checkpoints" / "step_000002", tmp_path / "copied")
    assert find_state(new, changed(resume=str(copied)))[1]["step"] == 2


def test_what_is_no_checkpoint_is_refused(tiny_folder, folder, tmp_path):
    foreign = shutil.copytree(folder / "checkpoints" / "step_000002", tmp_path / "foreign")
    (foreign / "checksums.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    for path, reason in ((tiny_folder, r"checksums\.json"), (foreign, "complete"), (tmp_path / "empty", "checksums")):
        with pytest.raises(ConfigError, match=reason) as error:
            find_state(tmp_path / "new", changed(resume=str(path)))
        assert error.value.key == "resume"
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_the_state_of_another_program_is_refused(tiny, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "checkpoints", *tiny, AdamW(tiny[0].parameters()), {"step": 3}, keep=1)
    with pytest.raises(ConfigError, match=r"training_state\.pt has no config"):
        find_state(tmp_path, changed())
    assert checkpoint.exists()


def test_a_run_cannot_go_on_to_where_it_has_been(folder):
    with pytest.raises(ConfigError, match=r"trainer\.max_steps=3: must be at least 4"):
        find_state(folder, changed(trainer__max_steps=3))


def test_to_find_a_checkpoint_changes_nothing(folder):
    replaced = folder / "checkpoints" / f"step_000004{REPLACED}"
    (folder / "checkpoints" / "step_000004").rename(replaced)
    assert find_state(folder, changed())[1]["step"] == 2
    assert replaced.exists()
    restore_replaced_name(folder / "checkpoints")  # as training does first
    assert find_state(folder, changed())[1]["step"] == 4


# --- which version ---------------------------------------------------------------------------------------------------


def test_a_finished_run_of_this_version_is_left_as_it_is(tmp_path):
    assert read_finished_summary(tmp_path, changed()) is None
    summary = {"step": 4, "metrics": {"reward": 0.5}, "lens_version": __version__}
    write_json(tmp_path / SUMMARY, summary)
    write_json(tmp_path / PROVENANCE, {"config": CONFIG})
    assert read_finished_summary(tmp_path, changed()) == summary
    assert read_finished_summary(tmp_path, changed(resume="never")) is None
    assert read_finished_summary(tmp_path, changed(trainer__max_steps=5)) is None


def test_a_finished_run_of_lens_0_1_is_refused(tmp_path):
    write_json(tmp_path / SUMMARY, {"step": 4, "metrics": {}})
    write_json(tmp_path / PROVENANCE, {"config": {"seed": 0, "trainer": {"max_steps": 4, "learning_rate": 0.1}}})
    with pytest.raises(
        ConfigError, match=r"^resume='auto': must be never, or take another run folder: lens 0\.1 wrote the run in "
    ) as e:
        read_finished_summary(tmp_path, changed())
    assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)


# --- which config ----------------------------------------------------------------------------------------------------


def test_keys_that_differ_are_named_with_both_values():
    there = changed()
    del there["seed"]
    config = changed(optimizer__learning_rate=0.2, objective__alpha=4, outputs="elsewhere", trainer__max_steps=9)
    with pytest.raises(ConfigError) as error:
        check_config(config, there, Path("run"))
    message = str(error.value)
    assert "optimizer.learning_rate is 0.2, there 0.1; " in message
    assert "objective.alpha is 4, there 0.25; " in message
    assert "seed is 0, there None" in message
    assert "outputs" not in message
    assert "max_steps" not in message


def test_a_longer_run_is_refused_where_the_learning_rate_depends_on_the_length():
    linear = {"optimizer__lr_scheduler": "linear"}
    with pytest.raises(ConfigError, match=r"trainer\.max_steps is 9, there 4"):
        check_config(changed(**linear, trainer__max_steps=9), changed(**linear), Path("run"))


def test_speed_may_differ_with_a_warning(caplog):
    check_config(changed(trainer__memory__max_tokens_per_microbatch=180), changed(), Path("run"))
    assert "trainer.memory.max_tokens_per_microbatch is 180, there 90" in caplog.text
    caplog.clear()
    check_config(changed(tracking__wandb__mode="online", resume="must", profile=True), changed(), Path("run"))
    assert not caplog.text


# --- which prompts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"a": 1, "b": 5, "c": 6}, "problem 2 of dataset, b, has another id, prompt or answer, or is new"),
        ({"b": 2, "a": 1, "c": 3}, "problem 1 of dataset, b, has"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "problem 4 of dataset, d, has"),
        ({"a": 1}, r"2 problem\(s\) of dataset after a are missing"),
    ],
)
def test_the_first_problem_that_differs_is_named(now, said):
    hashes = {"evaluation.sets.x": {"e": 7}, "dataset": {"a": 1, "b": 2, "c": 3}}
    state = {"prompts": check_prompts(hashes, None, None)}
    assert check_prompts(hashes, state, Path("run"))["dataset"].tolist() == [1, 2, 3]
    with pytest.raises(ConfigError, match=rf"^resume='run': must be a checkpoint of the same prompts: {said}"):
        check_prompts(hashes | {"dataset": now}, state, Path("run"))
    with pytest.raises(ConfigError, match=r"problem 1 of evaluation\.sets\.x, e, has"):
        check_prompts(hashes | {"evaluation.sets.x": {"e": 8}}, state, Path("run"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(command, model, files of problems by set, run folder, logs) of a run whose template asks for the day."""
    folder = tmp_path_factory.mktemp("asked")
    model = make_pupil(folder)
    template = model / "chat_template.jinja"
    template.write_text("{{ strftime_now('') }}" + template.read_text())
    files = {name: folder / f"{name}.jsonl" for name in ("dataset", "evaluation")}
    rows = [
        {"problem": p["problem"], "answer": p["answer"], "level": p["level"], "subject": "s", "unique_id": f"own/{n}"}
        for n, p in enumerate(arithmetic.load("validation", size=5))
    ]
    for file in files.values():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [f"+dataset.own.path={files['dataset']}", f"+evaluation.sets.own.path={files['evaluation']}"]
    sources += ["+dataset.own.source=math500", "+evaluation.sets.own.source=math500"]
    # With adapters, model and tokenizer come from the model's folder when a run resumes, not from the checkpoint.
    adapters = ["model/lora=default", "model.lora.r=4", "model.prompt.date=2024-07-26"]
    command = training(model, folder, *sources, *adapters, f"hydra.run.dir={folder / 'run'}", max_steps=2)
    result = run(*command, folder=folder / "logs")
    assert result.code == 0, result.stderr
    return [*command, "trainer.max_steps=4"], model, files, folder / "run", folder / "logs"


CHANGES = {
    "dataset": (3, "problem 23 of dataset, own/2, has"),
    "evaluation": (5, "problem 5 of evaluation.sets.own, own/4, has"),
    "template": (None, "problem 1 of dataset, arithmetic/"),
    "tokenizer": (None, "problem 1 of dataset, arithmetic/"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_prompts_are_refused_and_leave_the_run_as_it_was(asked, change):
    command, model, files, folder, logs = asked
    line, said = CHANGES[change]
    if line is not None:
        file, lines = files[change], files[change].read_text().splitlines()
        lines[line - 1] = lines[line - 1].replace('"problem": "', '"problem": "one ')
        changed = "\n".join(lines)
    elif change == "template":
        file = model / "chat_template.jinja"
        changed = file.read_text().replace("bos_token", "eos_token")
    else:
        file = model / "tokenizer.json"
        values = json.loads(file.read_text())
        vocabulary = values["model"]["vocab"]
        vocabulary |= dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
        changed = json.dumps(values)
    before, content = contents(folder), file.read_text()
    assert changed != content
    file.write_text(changed)
    result = run(*command, folder=logs)
    file.write_text(content)
    assert result.code == 2, result.stdout + result.stderr
    error = result.one_line()
    checkpoint = folder / "checkpoints" / "step_000002"
    assert error.startswith(f"error: resume='{checkpoint}': must be a checkpoint of the same prompts: {said}")
    assert error.endswith("; the data set, the tokenizer or its chat template has changed")
    assert contents(folder) == before


def test_the_same_prompts_are_gone_on_with_and_evaluated_with_their_day(asked, tmp_path):
    command, _, _, folder, logs = asked
    copied = shutil.copytree(folder, tmp_path / "run")
    result = run(*command, f"hydra.run.dir={copied}", folder=logs)
    assert result.code == 0, result.stderr
    assert "Resuming from step 2" in result.stdout
    config = copied / ".hydra" / "config.yaml"
    config.write_text("".join(line for line in config.open() if "date: " not in line))  # a run from before the key
    command = ["scripts/evaluate.py", f"checkpoint={copied}", f"outputs={tmp_path}", "evaluation.num_samples=1"]
    command += ["evaluation.sets.arithmetic.size=5"]
    result = run(*command, "model.prompt.date=null", folder=logs)
    assert (result.code, result.errors()) == (
        2,
        ["error: model.prompt.date=None: must be a date such as 2024-07-26: the chat template prints one"],
    )
    result = run(*command, folder=logs)
    assert result.code == 0, result.stderr


# --- from the command line -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(command, run folder) of a run that has reached step 4, with its best checkpoint and logs beside it."""
    outputs = tmp_path_factory.mktemp("outputs")
    keys = {"keep_best": "pass@1", "learning_rate": 1e-3, "rollouts_every": 0}
    command = training(make_pupil(tmp_path_factory.getbasetemp()), outputs, **keys)
    result = run(*command, f"hydra.run.dir={outputs / 'run'}", folder=outputs / "logs")
    assert result.code == 0, result.stderr
    return command, outputs / "run", outputs / "logs"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}


def test_the_best_checkpoint_is_kept_and_named(stopped):
    _, folder, _ = stopped
    best = json.loads((folder / "summary.json").read_text())["best"]
    values = {
        line["train/global_step"]: line["eval/arithmetic/pass@1"]
        for line in metrics_of(folder)
        if "eval/arithmetic/pass@1" in line
    }
    del values[0]
    expected = max(values, key=values.get)
    assert best == {"metric": "pass@1", "step": expected, "value": values[expected]}
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"step_000004", f"step_{expected:06d}"}


@pytest.mark.parametrize("steps", [4, 6])  # where the run is finished, and where it is to go on
def test_another_config_is_refused_and_leaves_the_run_as_it_was(stopped, steps):
    command, folder, logs = stopped
    before = contents(folder)
    other = [
        f"trainer.max_steps={steps}",
        "optimizer.learning_rate=0.5",
        "objective.alpha=2",
        "trainer.memory.num_threads=2",
    ]
    result = run(*command, *other, f"hydra.run.dir={folder}", folder=logs)
    assert result.code == 2
    line = result.one_line()
    assert line.startswith("error: resume='auto': ")
    assert "optimizer.learning_rate is 0.5, there 0.001" in line
    assert "objective.alpha is 2, there 0.25" in line
    assert "max_steps" not in line
    assert contents(folder) == before


def test_a_new_run_goes_on_from_another_as_that_would_have(stopped, tmp_path):
    command, folder, logs = stopped
    before = contents(folder)
    longer = [*command, "trainer.max_steps=6"]
    copy_of_it = shutil.copytree(folder, tmp_path / "copy")
    new = [f"hydra.run.dir={tmp_path / 'new'}", f"resume={folder}"]
    for more in ([f"hydra.run.dir={copy_of_it}"], new):
        result = run(*longer, *more, folder=logs)
        assert result.code == 0, result.stderr
        assert "Resuming from step 4" in result.stdout
    assert contents(folder) == before
    new_folder = tmp_path / "new"
    assert metrics_of(new_folder) == metrics_of(copy_of_it)
    weights = [f / "checkpoints" / "step_000006" / "model.safetensors" for f in (new_folder, copy_of_it)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert sorted(file.name for file in (new_folder / "evaluations").iterdir()) == sorted(
        file.name for file in (copy_of_it / "evaluations").iterdir()
    )
    assert_one_wandb_run(new_folder)
    assert_one_wandb_run(copy_of_it)


def test_a_run_whose_last_checkpoint_is_truncated_goes_on_from_the_one_before(stopped, tmp_path):
    command, _, logs = stopped
    whole, folder = tmp_path / "whole", tmp_path / "run"
    longer = [*command, "trainer.max_steps=6", "trainer.checkpoints.keep_checkpoints=3"]
    for target in (whole, folder):
        assert run(*longer, f"hydra.run.dir={target}", folder=logs).code == 0
    (folder / "summary.json").unlink()
    cut(folder / "checkpoints" / "step_000006")
    result = run(*longer, f"hydra.run.dir={folder}", folder=logs)
    assert result.code == 0, result.stderr
    assert "damaged: model.safetensors" in result.stdout
    assert "trying step_000004" in result.stdout
    assert "Resuming from step 4" in result.stdout
    assert metrics_of(folder) == metrics_of(whole)
    name = Path("checkpoints") / "step_000006" / "model.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert_one_wandb_run(folder)
