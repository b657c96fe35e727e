"""The command line: what is refused and how, help, evaluation, the tiny model, and the parts that this is made of."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from lens.cli.entry_point import remove_half_made
from lens.cli.explaining import explain, list_valid_keys
from lens.config.checks import RULES, check_objective, check_training, check_values
from lens.config.keys import hash_config
from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.problems.dapo import AFTER, BEFORE
from tests.support.command_line import Command, environment, run, training

# --- what is refused -------------------------------------------------------------------------------------------------


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
        "trainer.rollouts.num_generations",
        given="trainer.max_step=3",
        real=True,
    ),
    "unknown key": bad("banana='1': no such key; valid here: ", "trainer", given="banana=1"),
    "misspelt group": bad("objectiv='grpo'", "did you mean objective?", given="objectiv=grpo"),
    "unknown option": bad("objective='lenz': one of ", "lens_shuffled", "grpo", given="objective=lenz"),
    "no value": bad("trainer.max_steps", given="trainer.max_steps"),
    "wrong kind": bad("trainer.max_steps='many': an integer >= 1", given="trainer.max_steps=many"),
    "negative alpha": bad("objective.alpha=-0.25: a number >= 0", given="objective.alpha=-0.25", real=True),
    "group of one": bad(
        "trainer.rollouts.num_generations=1: an integer >= 2", given="trainer.rollouts.num_generations=1"
    ),
    "small micro-batch": bad(
        "trainer.memory.max_tokens_per_microbatch=89: at least 90", given="trainer.memory.max_tokens_per_microbatch=89"
    ),
    "no divisor": bad(
        "trainer.num_prompts_per_step=3: a divisor of trainer.rollouts.num_prompts_per_rollout=4",
        given="trainer.num_prompts_per_step=3",
    ),
    "no old policy": bad(
        "trainer.rollouts.old_logprobs='current': trainer or sampler, as a round of 4 questions is several updates of 2",
        given="trainer.rollouts.old_logprobs=current trainer.num_prompts_per_step=2",
    ),
    "weights without the policy's": bad(
        "trainer.rollouts.importance_sampling='token_mask': none, or trainer.rollouts.old_logprobs=trainer",
        given="trainer.rollouts.importance_sampling=token_mask trainer.rollouts.old_logprobs=current",
    ),
    "more questions than problems": bad(
        "trainer.rollouts.num_prompts_per_rollout=24: at most 20", given="trainer.rollouts.num_prompts_per_rollout=24"
    ),
    "cut distribution": bad("trainer.rollouts.top_p=0.9: 1: below it", given="trainer.rollouts.top_p=0.9"),
    "two betas": bad("optimizer.adam_betas=[0.9]: two numbers", given="optimizer.adam_betas=[0.9]"),
    "unknown schedule": bad("optimizer.lr_scheduler='cosin': one of ", "cosine", given="optimizer.lr_scheduler=cosin"),
    "greedy samples": bad("evaluation.num_samples=4: 1, as", given="evaluation.temperature=0"),
    "no weights": bad("model.name_or_path='{no_weights}': ", "safetensors", given="model.name_or_path={no_weights}"),
    "no config": bad("model.name_or_path='{empty}': ", "config.json", given="model.name_or_path={empty}"),
    "no such model": bad("model.name_or_path='{absent}': ", given="model.name_or_path={absent}"),
    "no end token": bad(
        "model.name_or_path='{endless}': a tokenizer with an end-of-sequence token",
        given="model.name_or_path={endless}",
        real=True,
    ),
    "no model": bad("model.name_or_path", given="model=hf model.name_or_path=???"),
    "levels of a set without": bad(
        "evaluation.by_level=True: false, as the set 'dapo' has no levels",
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
    "odd size": bad("dataset.arithmetic.size=7: a multiple of 5", given="dataset.arithmetic.size=7"),
    "no workers": bad("num_workers=0", given="grader.num_workers=0"),
    "no jobs": bad("jobs=0: an integer >= 1, or -1 for all cores", given="-m jobs=0 seed=0,1"),
    "no sequences": bad("sampler.max_num_seqs=0: an integer >= 1", given="sampler.max_num_seqs=0"),
    "outputs in a device": bad("outputs='/dev/null", "written to", given="outputs=/dev/null/x", real=True),
    "outputs in a file": bad("outputs='{file}", "written to", given="outputs={file}/x"),
    "online without a key": bad(
        "tracking.wandb.mode='online': ", "WANDB_API_KEY", "offline", given="tracking.wandb.mode=online", real=True
    ),
    "unknown W&B mode": bad("tracking.wandb.mode='on': one of auto", given="tracking.wandb.mode=on"),
    "nothing to resume": bad("resume='must': auto", given="resume=must"),
    "resuming from nowhere": bad("resume='{absent}': auto, never, must, or a run", given="resume={absent}"),
    "resuming from a model": bad("resume='{endless}': a whole checkpoint", "checksums", given="resume={endless}"),
    "best of what is not measured": bad(
        "trainer.checkpoints.keep_best='pass@8': one of pass@1, pass@2, pass@4, as",
        given="trainer.checkpoints.keep_best=pass@8",
    ),
    "a job of a sweep": bad("objective.alpha=-1: a number >= 0", given="-m objective.alpha=-1 hydra/launcher=basic"),
    "what is no option": bad("unrecognized arguments: --foo", given="--foo"),
    "what no option can be": bad("--cfg", "'jib'", "job", given="--cfg jib"),
    "a sweep's config": bad("--multirun and --cfg: one of them at a time", given="-m objective=grpo,lens --cfg job"),
    "two things to do": bad("--cfg and --info: one of them at a time", given="--info all --cfg job"),
    "resolve what": bad("--resolve: with --cfg or --help only", given="--resolve"),
    "a pickled config": bad("--experimental-rerun", given="--experimental-rerun {file}"),
    "an option of a sweep": bad("objective='lenz': one of ", given="-m objective=grpo,lenz jobs=1"),
    "evaluation of nothing": bad("checkpoint", given="outputs={outputs}", script="scripts/evaluate.py"),
    "evaluation of no model": bad(
        "checkpoint='{absent}'", given="checkpoint={absent} outputs={outputs}", script="scripts/evaluate.py"
    ),
    "evaluation of an empty run": bad(
        "checkpoint='{no_checkpoint}': a run folder with a checkpoint",
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


def test_torch_compile_without_a_compiler_is_refused(pupil, logs, tmp_path):
    env = environment(CXX="/nonexistent/c++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    command = training(pupil, tmp_path / "outputs", torch_compile="true")
    result = run(*command, folder=logs / "no_compiler", real=True, env=env)
    assert result.code == 2
    line = result.one_line()
    assert line.startswith(
        "error: trainer.memory.torch_compile=True: false, or a machine with what torch.compile needs ("
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


def test_only_what_hydra_made_is_removed(tmp_path):
    half_made, whole = tmp_path / "runs" / "half", tmp_path / "other" / "runs" / "whole"
    for folder in (half_made, whole):
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").touch()
    (whole / "metrics.jsonl").touch()
    for folder in (half_made, whole):
        remove_half_made(folder)
    assert not (tmp_path / "runs").exists()
    assert (whole / ".hydra" / "config.yaml").exists()


# --- help, evaluation, the tiny model --------------------------------------------------------------------------------


def test_help_names_groups_and_keys(logs):
    result = run("scripts/train.py", "--help", folder=logs, real=True)
    assert result.code == 0, result.stderr
    for group in ("objective", "dataset", "model", "evaluation", "experiment"):
        assert f"{group}: " in result.stdout
    for text in ("lens_shuffled", "num_generations: 8", "-m objective=grpo,lens", 'eval "$(python', "--cfg job"):
        assert text in result.stdout


def test_the_composed_config_is_printed(logs, tmp_path):
    result = run("scripts/train.py", "--cfg", "job", "objective=grpo", "seed=7", f"outputs={tmp_path}", folder=logs)
    assert result.code == 0, result.stderr
    config = OmegaConf.create(result.stdout)
    assert config.seed == 7
    assert config.objective._target_ == "lens.objectives.grpo_advantages"
    assert config.trainer.rollouts.num_generations == 8
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ("objective=grpo --cfg job --resolve", "group: tiny"),
        ("--cfg job --package objective objective=lens_strong", "alpha: 4.0"),
        ("--cfg hydra --package hydra.launcher", "n_jobs: ${jobs}"),
        ("--cfg hydra --package hydra.launcher hydra/launcher=basic", "BasicLauncher"),
        ("--cfg hydra --package hydra.launcher hydra/launcher=joblib", "n_jobs: -1"),
        ("--cfg hydra --package hydra.launcher hydra/launcher=submitit_local", "timeout_min: 10080"),
        ("--cfg hydra --package hydra.launcher hydra/launcher=submitit_slurm", "max_num_timeout: 3"),
        ("objective=grpo --info defaults-tree", "objective: grpo"),
        ("--hydra-help", "Hydra"),
    ],
)
def test_hydra_s_own_options_work_before_and_after_overrides(logs, arguments, printed):
    result = run("scripts/train.py", *arguments.split(), folder=logs)
    assert result.code == 0, result.stderr
    assert printed in result.stdout


def test_keys_are_completed(logs):
    env = environment(COMP_LINE="python scripts/train.py trainer.max_st", COMP_POINT="38")
    result = run("scripts/train.py", "--shell-completion", "query=bash", folder=logs, env=env)
    assert result.code == 0, result.stderr
    assert "trainer.max_steps=" in result.stdout.split()


THE_TWENTY = ["evaluation.sets.arithmetic.split=train", "evaluation.sets.arithmetic.size=20"]


@pytest.fixture(scope="module")
def trained(pupil, logs, tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("trained")
    command = training(pupil, outputs, "evaluation.every=0", max_steps=2)
    result = run(*command, f"hydra.run.dir={outputs / 'run'}", folder=logs)
    assert result.code == 0, result.stderr
    return outputs / "run"


def evaluate(checkpoint: Path, outputs: Path, logs: Path, *overrides: str, **options):
    """The result, the rows and the metrics of an evaluation."""
    command = [
        "scripts/evaluate.py",
        f"checkpoint={checkpoint}",
        f"outputs={outputs}",
        *THE_TWENTY,
        "evaluation.num_samples=4",
        *overrides,
    ]
    result = run(*command, folder=logs, **options)
    assert result.code == 0, result.stderr
    (folder,) = (outputs / "evaluations").iterdir()
    assert str(folder) in result.stdout
    return result, pd.read_parquet(folder / "evaluation.parquet"), json.loads((folder / "summary.json").read_text())


def test_a_run_and_its_checkpoint_evaluate_alike(trained, logs, tmp_path):
    result, rows, summary = evaluate(trained, tmp_path / "a", logs, real=True)
    checkpoint = trained / "checkpoints" / "step_000002"
    _, same_rows, same_summary = evaluate(checkpoint, tmp_path / "b", logs)
    pd.testing.assert_frame_equal(rows, same_rows)
    assert summary["metrics"] == same_summary["metrics"]
    assert summary["checkpoint"] == str(checkpoint)
    assert len(rows) == 20
    assert 0 < rows["correct"].sum() < 80

    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    printed = {row[1]: row for row in cells}
    assert {"all", *(f"level_{level}" for level in range(1, 6)), "levels_4-5"} <= printed.keys()
    for part, of_part in (("all", rows), ("level_1", rows[rows["level"] == 1])):
        mean, low, high = map(float, re.fullmatch(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", printed[part][4]).groups())
        assert mean == pytest.approx(100 * of_part["correct"].sum() / of_part["n"].sum(), abs=0.051)
        assert low <= mean <= high
        assert low < high
        assert printed[part][2] == str(len(of_part))


def test_evaluations_that_start_together_have_a_folder_each(pupil, logs, tmp_path):
    keys = [f"checkpoint={pupil}", f"outputs={tmp_path}", *THE_TWENTY, "evaluation.num_samples=1"]
    prompt = ["model.prompt.instruction=null", "trainer.rollouts.max_completion_length=26"]
    both = [Command("scripts/evaluate.py", *keys, *prompt, folder=logs) for _ in range(2)]
    assert [command.wait().code for command in both] == [0, 0]
    folders = list((tmp_path / "evaluations").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert re.fullmatch(r"[\d-]{10}_[\d-]{8}-\d{6}", folder.name)
        assert (folder / "summary.json").exists()


def test_any_model_is_evaluated(pupil, logs, tmp_path):
    overrides = [
        "model.prompt.instruction=null",
        "trainer.rollouts.max_completion_length=26",
        "evaluation.by_level=false",
    ]
    result, rows, summary = evaluate(pupil, tmp_path, logs, *overrides)
    assert rows["correct"].sum() > 0
    assert summary["metrics"]["eval/arithmetic/pass@1"] == pytest.approx(rows["correct"].sum() / 80)
    assert not [name for name in summary["metrics"] if "level" in name]
    assert "level_1" not in result.stdout


def test_the_tiny_model_is_made_once(logs, tmp_path):
    keys = ["model.recipe.steps=3", "model.recipe.batch_size=4", "model.recipe.num_layers=1", f"outputs={tmp_path}"]
    results = [run("scripts/make_tiny.py", *keys, folder=logs) for _ in range(2)]
    assert [result.code for result in results] == [0, 0], results
    folders = [result.stdout.splitlines()[-1] for result in results]
    assert folders[0] == folders[1]
    assert Path(folders[0]).parent == tmp_path / "models"
    assert "Making the tiny model" in results[0].stdout
    assert "Making" not in results[1].stdout
    assert json.loads((Path(folders[0]) / "recipe.json").read_text())["steps"] == 3
    other = run("scripts/make_tiny.py", *keys, "model.recipe.seed=1", folder=logs)
    assert other.stdout.splitlines()[-1] != folders[0]


# --- the parts -------------------------------------------------------------------------------------------------------


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


def test_the_hash_of_a_config_depends_on_what_decides_the_results():
    def hashed(*overrides: str) -> str:
        return hash_config(_root_=composed(*overrides))

    plain = hashed()
    assert re.fullmatch("[0-9a-f]{8}", plain)
    alike = ["outputs=/elsewhere", "check_golds=false", "tracking.wandb.mode=offline", "resume=never"]
    assert {hashed(override) for override in [*alike, "jobs=7"]} == {plain}
    different = ["seed=1", "objective=grpo", "objective.alpha=0.5", "trainer.max_steps=61", "dataset.seed=1"]
    assert len({plain, *(hashed(override) for override in different)}) == 1 + len(different)


def test_valid_keys_follow_the_chosen_groups():
    keys = list_valid_keys("train", ["objective=grpo", "seed=1"])
    assert {"seed", "trainer.max_steps", "objective.eps", "evaluation.sets.arithmetic.split"} <= set(keys)
    assert "objective.alpha" not in keys
    assert "objective.alpha" in list_valid_keys("train", ["objective=lens,grpo"])
    assert "checkpoint" in list_valid_keys("evaluate", [])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.learnin_rate=1", "trainer.learnin_rate='1': no such key; did you mean optimizer.learning_rate?"),
        ("objective.alhpa=2", "objective.alhpa='2': no such key; did you mean objective.alpha?"),
        ("evaluation.sets.arithmetic.sise=5", "did you mean evaluation.sets.arithmetic.size?"),
        ("objective=lans", "objective='lans': one of grpo, lens, "),
    ],
)
def test_hydra_errors_are_explained(override, says):
    with pytest.raises(ConfigCompositionException) as error:
        composed(override)
    explained = explain(error.value, "train", [override])
    assert says in explained
    assert "\n" not in explained


def test_a_config_error_inside_another_is_what_is_told():
    inner = ConfigError("a.b", 3, "an even number")
    outer = RuntimeError("Error in call to target")
    outer.__cause__ = inner
    assert explain(outer, "train", []) == "a.b=3: an even number"


# --- the rules -------------------------------------------------------------------------------------------------------

OUT_OF_BOUNDS = {
    "seed": [-1],
    "resume": ["maybe"],
    "jobs": [0, -2],
    "check_golds": [1],
    "profile": [1],
    "trainer.max_steps": [0],
    "trainer.rollouts.num_prompts_per_rollout": [0],
    "trainer.num_prompts_per_step": [0],
    "trainer.rollouts.num_generations": [1],
    "trainer.rollouts.max_completion_length": [0],
    "trainer.rollouts.temperature": [0, -1],
    "trainer.rollouts.top_p": [0.99, 1.01],
    "trainer.rollouts.truncated": ["drop"],
    "trainer.rollouts.old_logprobs": ["engine"],
    "trainer.rollouts.confidence": ["engine"],
    "trainer.rollouts.importance_sampling": ["sequence_truncate"],
    "trainer.rollouts.importance_cap": [1, 0.5],
    "trainer.memory.autocast": ["float16"],
    "model.attention": ["fast", "org/kernel"],
    "loss.epsilon_low": [0, 1, -0.2],
    "loss.epsilon_high": [0, -0.2],
    "loss.dual_clip": [1, 0.5],
    "loss.loss_agg_mode": ["token-sum"],
    "loss.beta": [-0.1],
    "loss.entropy_coef": [-0.01],
    "optimizer.learning_rate": [-1e-6],
    "optimizer.adam_eps": [0],
    "optimizer.weight_decay": [-0.1],
    "optimizer.max_grad_norm": [0],
    "optimizer.lr_scheduler": ["triangle"],
    "optimizer.warmup_steps": [-1],
    "trainer.memory.max_tokens_per_microbatch": [0],
    "trainer.memory.logits_chunk_size": [0],
    "trainer.memory.gradient_checkpointing": ["yes", 1],
    "trainer.memory.torch_compile": ["yes", 1],
    "trainer.grad_share_every": [-1],
    "trainer.checkpoints.checkpoint_every": [0],
    "trainer.checkpoints.keep_checkpoints": [0],
    "trainer.checkpoints.keep_best": ["reward", "pass@"],
    "trainer.non_finite": ["ignore"],
    "trainer.max_entropy": [0],
    "trainer.rollouts.rollouts_every": [-1],
    "trainer.memory.num_threads": [0],
    "evaluation.every": [-1],
    "evaluation.num_samples": [0],
    "evaluation.temperature": [-0.1],
    "evaluation.top_p": [0, 1.1],
    "evaluation.max_completion_length": [0],
    "evaluation.by_level": ["yes", 1],
    "objective.alpha": [-0.01],
    "objective.eps": [0],
    "objective.groups": ["positive"],
    "objective.difficulty": ["exact"],
    "objective.scale_mixed": [0],
    "objective.scale_negative": [0],
    "objective.rho": [0, 1.1, "pi"],
    "objective.scale_by_std": [0],
    "sampler.max_num_seqs": [0],
    "sampler.dtype": ["float64"],
    "sampler.max_model_len": [1],
    "sampler.kv_cache_space": [0],
    "sampler.gpu_memory_utilization": [0, 1.1],
    "sampler.tensor_parallel_size": [0],
    "sampler.enforce_eager": [1],
    "sampler.sleep": [1],
    "sampler.parity_every": [-1],
    "sampler.max_logp_difference": [0],
    "model.lora": [{"r": 16}, 16],
    "model.lora.r": [0],
    "model.lora.alpha": [0],
    "model.lora.target_modules": ["q_proj", [], [""], None],
    "model.prompt.template": ["bare"],
    "model.prompt.max_length": [0],
    "part": ["all"],
    "rounds": [0],
    "warmup": [-1],
    "peak_size": [0],
    "naive.sequences": [0],
    "made_up.shortest_share": [0, 1.1],
    "made_up.silent_share": [-0.1, 1.1],
    "trl.per_device_train_batch_size": [0],
    "trl.gradient_checkpointing": [1],
    "scaling.sampled": [1],
}


def test_every_rule_is_about_a_key_that_there_is():
    assert OUT_OF_BOUNDS.keys() == RULES.keys()
    chosen = ["experiment=smollm2/math", "model/lora=default"]
    there = [*list_valid_keys("train", chosen), *list_valid_keys("benchmark", ["part=step"])]
    assert RULES.keys() <= set(there)


@pytest.fixture(scope="module")
def plain() -> DictConfig:
    return composed("experiment=smollm2/math", "model/lora=default", "evaluation.num_samples=16")


@pytest.mark.parametrize("key", RULES)
def test_every_rule_refuses(plain, key):
    for value in [*OUT_OF_BOUNDS[key], "nonsense", [1], float("nan")]:
        config = copy.deepcopy(plain)
        OmegaConf.update(config, key, value, merge=False, force_add=True)  # some belong to the benchmark alone
        with pytest.raises(ConfigError) as error:
            check_values(config)
        assert error.value.key == key
        assert str(error.value).startswith(f"{key}=")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.rollouts.temperature", 0.7),
        ("trainer.rollouts.top_p", 1),
        ("loss.dual_clip", None),
        ("loss.dual_clip", 3),
        ("trainer.memory.num_threads", None),
        ("trainer.checkpoints.keep_best", None),
        ("trainer.checkpoints.keep_best", "pass@16"),
        ("trainer.max_entropy", None),
        ("resume", "/"),
        ("loss.beta", 0),
        ("loss.entropy_coef", 0.01),
        ("evaluation.temperature", 0),
        ("evaluation.every", 0),
        ("objective.alpha", 0),
        ("objective.scale_mixed", None),
        ("objective.scale_negative", 1),
        ("loss.loss_agg_mode", "seq-mean-token-sum-norm"),
        ("model.lora", None),
        ("model.lora.r", 1),
        ("model.lora.target_modules", ["q_proj"]),
    ],
)
def test_what_lies_on_a_bound_is_taken(plain, key, value):
    config = copy.deepcopy(plain)
    OmegaConf.update(config, key, value)
    check_values(config)
    check_training(config)


def test_true_is_no_number(plain):
    config = copy.deepcopy(plain)
    config.trainer.max_steps = True
    with pytest.raises(ConfigError, match=r"trainer\.max_steps=True"):
        check_values(config)


def test_an_objective_is_called_before_anything_is_made():
    def no_keywords(correct, confidence):
        return confidence

    def no_shape(correct, confidence, *, lengths, valid):
        return confidence.mean(dim=1)

    def no_numbers(correct, confidence, *, lengths, valid):
        return correct

    for objective, reason in ((no_keywords, "lengths"), (no_shape, r"\[2\]"), (no_numbers, "bool")):
        with pytest.raises(ConfigError, match=reason) as error:
            check_objective(objective)
        assert error.value.key == "objective._target_"
        assert objective.__name__ in str(error.value)


def test_the_environment_of_these_tests_has_no_wandb_account(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert not [name for name in environment() if name.startswith("WANDB")]
    assert environment(HOME=None).get("HOME") is None
    assert environment()["PATH"] == os.environ["PATH"]
