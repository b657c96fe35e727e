"""What cannot work is refused at the start, with one line and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from lens.problems.dapo import AFTER, BEFORE
from tests.support.command_line import environment, run, training


@dataclass(frozen=True)
class Bad:
    """A command that cannot work, and what its one line says; {name} in overrides is a path that `materials` made.

    ``real`` starts Python anew; the others fork from a process that has done the imports.
    """

    says: tuple[str, ...]
    overrides: tuple[str, ...]
    script: str = "scripts/train.py"
    real: bool = False


def bad(*says: str, given: str = "", **options) -> Bad:
    return Bad(says, tuple(given.split()), **options)


REFUSED = {
    "misspelt key": bad(
        "trainer.max_step='3': no such key; did you mean trainer.max_steps?",
        "trainer.num_prompts_per_step",
        given="trainer.max_step=3",
        real=True,
    ),
    "unknown key": bad("banana='1': no such key; valid here: ", "trainer", given="banana=1"),
    "misspelt group": bad("objectiv='grpo'", "did you mean objective?", given="objectiv=grpo"),
    "a folder of experiments": bad("experiment/map='alpha': type experiment=map/alpha", given="experiment/map=alpha"),
    "unknown option": bad("objective='lenz': must be one of ", "lens_shuffled", "grpo", given="objective=lenz"),
    "no value": bad("trainer.max_steps", given="trainer.max_steps"),
    "wrong kind": bad("trainer.max_steps='many': must be an integer >= 1", given="trainer.max_steps=many"),
    "negative alpha": bad("objective.alpha=-0.25: must be a number >= 0", given="objective.alpha=-0.25", real=True),
    "group of one": bad(
        "trainer.rollouts.num_generations=1: must be an integer >= 2", given="trainer.rollouts.num_generations=1"
    ),
    "small micro-batch": bad(
        "trainer.memory.max_tokens_per_microbatch=89: must be at least 90",
        given="trainer.memory.max_tokens_per_microbatch=89",
    ),
    "no divisor": bad(
        "trainer.num_prompts_per_step=3: must be a divisor of trainer.rollouts.num_prompts_per_rollout=4",
        given="trainer.num_prompts_per_step=3",
    ),
    "no old policy": bad(
        "trainer.rollouts.old_logprobs='current': must be trainer or sampler, ",
        "as a round of 4 questions is several updates of 2",
        given="trainer.rollouts.old_logprobs=current trainer.num_prompts_per_step=2",
    ),
    "weights without the policy's": bad(
        "trainer.rollouts.importance_sampling='token_mask': must be none unless trainer.rollouts.old_logprobs=trainer",
        given="trainer.rollouts.importance_sampling=token_mask trainer.rollouts.old_logprobs=current",
    ),
    "more questions than problems": bad(
        "trainer.rollouts.num_prompts_per_rollout=24: must be at most 20",
        given="trainer.rollouts.num_prompts_per_rollout=24",
    ),
    "cut distribution": bad("trainer.rollouts.top_p=0.9: must be 1: below it", given="trainer.rollouts.top_p=0.9"),
    "the clip of another loss": bad(
        "loss.ratio_max='2': no such key; ", "valid here: loss.loss_agg_mode, ", given="loss.ratio_max=2"
    ),
    "what losses share is no loss": bad("loss._target_", given="loss=base"),
    "two betas": bad("optimizer.adam_betas=[0.9]: must be two numbers", given="optimizer.adam_betas=[0.9]"),
    "unknown schedule": bad(
        "optimizer.lr_scheduler='cosin': must be one of ", "cosine", given="optimizer.lr_scheduler=cosin"
    ),
    "greedy samples": bad("evaluation.num_samples=4: must be 1, as", given="evaluation.temperature=0"),
    "no weights": bad("model.name_or_path='{no_weights}': ", "safetensors", given="model.name_or_path={no_weights}"),
    "no config": bad("model.name_or_path='{empty}': ", "config.json", given="model.name_or_path={empty}"),
    "no such model": bad(
        "model.name_or_path='{absent}': must be a folder that exists", given="model.name_or_path={absent}"
    ),
    "no end token": bad(
        "model.name_or_path='{endless}': must have a tokenizer with an end-of-sequence token",
        given="model.name_or_path={endless}",
        real=True,
    ),
    "no model": bad("model.name_or_path", given="model=hf model.name_or_path=???"),
    "levels of a set without": bad(
        "evaluation.by_level=True: must be false, as the set 'dapo' has no levels",
        given="+evaluation.sets.dapo.source=dapo +evaluation.sets.dapo.path={dapo}",
        real=True,
    ),
    "a set without a source": bad(
        "evaluation.sets.math.source=None: must be one of math", given="+evaluation.sets.math.size=60"
    ),
    "problems without a source": bad("dataset.dapo.source=None: must be one of math", given="+dataset.dapo.size=60"),
    "no such file": bad(
        "evaluation.sets.dapo.path='{absent}'",
        given="+evaluation.sets.dapo.source=dapo +evaluation.sets.dapo.path={absent}",
    ),
    "odd size": bad("dataset.arithmetic.size=7: must be a multiple of 5", given="dataset.arithmetic.size=7"),
    "no workers": bad("num_workers=0", given="grader.num_workers=0"),
    "no jobs": bad("jobs=0: must be an integer >= 1, or -1 for all cores", given="-m jobs=0 seed=0,1"),
    "no sequences": bad("sampler.max_num_seqs=0: must be an integer >= 1", given="sampler.max_num_seqs=0"),
    "outputs in a device": bad("outputs='/dev/null", "written to", given="outputs=/dev/null/x", real=True),
    "outputs in a file": bad("outputs='{file}", "written to", given="outputs={file}/x"),
    "online without a key": bad(
        "tracking.wandb.mode='online': ", "WANDB_API_KEY", "offline", given="tracking.wandb.mode=online", real=True
    ),
    "unknown W&B mode": bad("tracking.wandb.mode='on': must be one of auto", given="tracking.wandb.mode=on"),
    "nothing to resume": bad("resume='must': must be auto", given="resume=must"),
    "resuming from nowhere": bad("resume='{absent}': must be auto, never, must, or a run", given="resume={absent}"),
    "resuming from a model": bad(
        "resume='{endless}': must be a complete checkpoint", "checksums", given="resume={endless}"
    ),
    "best of what is not measured": bad(
        "trainer.checkpoints.keep_best='pass@8': must be one of pass@1, pass@2, pass@4, as",
        given="trainer.checkpoints.keep_best=pass@8",
    ),
    "a job of a sweep": bad(
        "objective.alpha=-1: must be a number >= 0", given="-m objective.alpha=-1 hydra/launcher=basic"
    ),
    "what is no option": bad("unrecognized arguments: --foo", given="--foo"),
    "what no option can be": bad("--cfg", "'jib'", "job", given="--cfg jib"),
    "a sweep's config": bad("--multirun and --cfg: one of them at a time", given="-m objective=grpo,lens --cfg job"),
    "two things to do": bad("--cfg and --info: one of them at a time", given="--info all --cfg job"),
    "resolve what": bad("--resolve: with --cfg or --help only", given="--resolve"),
    "a pickled config": bad("--experimental-rerun", given="--experimental-rerun {file}"),
    "an option of a sweep": bad("objective='lenz': must be one of ", given="-m objective=grpo,lenz jobs=1"),
    "evaluation of nothing": bad("checkpoint", given="outputs={outputs}", script="scripts/evaluate.py"),
    "evaluation of no model": bad(
        "checkpoint='{absent}'", given="checkpoint={absent} outputs={outputs}", script="scripts/evaluate.py"
    ),
    "evaluation of an empty run": bad(
        "checkpoint='{no_checkpoint}': must be a run folder with a checkpoint",
        given="checkpoint={no_checkpoint} outputs={outputs}",
        script="scripts/evaluate.py",
    ),
    "report on what": bad("runs", script="scripts/report.py"),
    "report on nothing": bad("runs='{empty}'", "summary.json", given="runs={empty}", script="scripts/report.py"),
}


@pytest.fixture(scope="module")
def materials(pupil, tmp_path_factory) -> dict[str, Path]:
    """Things that cannot be used, by name."""
    folder = tmp_path_factory.mktemp("materials")
    (folder / "empty").mkdir()
    (folder / "no_checkpoint" / ".hydra").mkdir(parents=True)
    (folder / "file").touch()
    for name in ("no_weights", "endless"):
        shutil.copytree(pupil, folder / name)
    (folder / "no_weights" / "model.safetensors").unlink()
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((folder / "endless" / file).read_text())
        values = {key: value for key, value in values.items() if not key.startswith("eos_token")}
        (folder / "endless" / file).write_text(json.dumps(values))
    row = {
        "data_source": "math_dapo",
        "prompt": [{"content": f"{BEFORE}What is $ 1 + 1 $ ?{AFTER}", "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "a"},
    }
    (folder / "dapo.jsonl").write_text(json.dumps(row) + "\n")
    names = ("empty", "no_checkpoint", "file", "no_weights", "endless", "absent")
    return {name: folder / name for name in names} | {"dapo": folder / "dapo.jsonl"}


@pytest.fixture(scope="module")
def refusals(pupil, materials, logs, tmp_path_factory):
    """How each of REFUSED ended, and its outputs folder; two run at a time."""

    def attempt(name: str):
        case, outputs = REFUSED[name], tmp_path_factory.mktemp("refused") / "outputs"
        overrides = [override.format(**materials, outputs=outputs) for override in case.overrides]
        if case.script == "scripts/train.py":
            script, *known = map(str, training(pupil, outputs))
            flags = [override for override in overrides if override == "-m"]
            overrides = [o for o in overrides if o not in flags]
            keys = {override.split("=")[0] for override in overrides}
            command = [script, *flags, *(o for o in known if o.split("=")[0] not in keys), *overrides]
        else:
            command = [case.script, *overrides]
        home = logs / "home"
        env = environment(HOME=str(home), NETRC=None)
        return run(*command, folder=logs / re.sub(r"\W", "_", name), real=case.real, env=env), outputs

    (logs / "home").mkdir()
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(REFUSED, pool.map(attempt, REFUSED), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_with_one_line(refusals, materials, name):
    result, outputs = refusals[name]
    assert result.code == 2, result.stderr
    if "-m" in REFUSED[name].overrides:  # Hydra says which job it was, below the progress bar
        line = result.stderr.splitlines()[-1]
        left = [path for path in outputs.rglob("*") if path.is_file() and path.name != "multirun.yaml"]
        assert not left
    else:
        line = result.stderr.removesuffix("\n")
        assert "\n" not in line
        assert not outputs.exists(), "something half-made is left behind"
    assert line.startswith("error: ")
    assert "Traceback" not in result.stdout + result.stderr
    for part in REFUSED[name].says:
        assert part.format(**materials) in line


@pytest.mark.slow
def test_torch_compile_without_a_compiler_is_refused(pupil, logs, tmp_path):
    env = environment(CXX="/nonexistent/c++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    command = training(pupil, tmp_path / "outputs", torch_compile="true")
    result = run(*command, folder=logs / "no_compiler", real=True, env=env)
    assert result.code == 2
    line = result.one_line()
    assert line.startswith(
        "error: trainer.memory.torch_compile=True: must be false, unless the machine has what torch.compile needs ("
    )
    assert "Traceback" not in result.stdout + result.stderr


def test_enough_of_them_are_real_commands():
    assert sum(case.real for case in REFUSED.values()) >= 6


def test_a_refused_report_leaves_the_working_directory_alone(logs, materials, tmp_path):
    (tmp_path / "here").mkdir()
    result = run("scripts/report.py", f"runs={materials['empty']}", folder=logs / "here", cwd=tmp_path / "here")
    assert result.code == 2
    assert (tmp_path / "here").is_dir()
    assert not list((tmp_path / "here").iterdir())
