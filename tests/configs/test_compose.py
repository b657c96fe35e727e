"""Every shipped config composes, its parts can be made on the CPU, and every key says what it means."""

from __future__ import annotations

import inspect
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_method, get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from lens.config.callables import check_loss, check_objective, make_example
from lens.config.checks import check_training, check_values
from lens.config.keys import hash_config
from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.models.tiny import TinyRecipe
from lens.objectives.inputs import call_by_name
from lens.problems import load_evaluation_sets
from lens.training.update import Loss
from tests.support.configs import composed
from tests.support.objectives import ONE_SIDED, SILENT, TEACHES_POSITIVE

LENS = CONFIGS.parent / "lens"
FILES = sorted(CONFIGS.rglob("*.yaml"))
BASES = {"paper/base", "base"}  # what several options of a group share; no command runs it
SHARED = {"run"}  # the config that several scripts share


def option_of(file: Path) -> tuple[str, str]:
    """Group and option of a file; the folders of experiments are part of the option."""
    group = "experiment" if "experiment" in file.relative_to(CONFIGS).parts else file.parent.relative_to(CONFIGS)
    return str(group), str(file.relative_to(CONFIGS / group).with_suffix(""))


OPTIONS = [option_of(file) for file in FILES if file.parent != CONFIGS]
OPTIONS = [(group, option) for group, option in OPTIONS if not group.startswith("hydra") and option not in BASES]
EXPERIMENTS = sorted(option for group, option in OPTIONS if group == "experiment")
PRIMARIES = sorted({file.stem for file in CONFIGS.glob("*.yaml")} - SHARED)
REQUIRED = {
    "evaluate": ["checkpoint=x"],
    "export": ["checkpoint=x", "target=y"],
    "report": ["runs=x"],
    "audit_grades": ["run=x"],
    "regrade": ["run=x"],
    "replay": ["run=x"],
    "benchmark": ["part=step"],
    "warm_up": ["into=x", "model.name_or_path=y"],
}
NAMED = {"hf": ["model.name_or_path=x"]}
EXEMPT = {"_target_", "_partial_", "_convert_"}
BESIDE_THE_SURROGATE = {*OmegaConf.load(CONFIGS / "loss" / "base.yaml")} - EXEMPT


def resolved(config: DictConfig) -> dict:
    """All values but Hydra's; raises where one is missing or cannot be worked out."""
    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    own._set_parent(None)
    return OmegaConf.to_container(own, resolve=True, throw_on_missing=True)


def targets(node: object, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every node with a _target_, and where it stands."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, child in node.items():
            yield from targets(child, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for number, child in enumerate(node):
            yield from targets(child, f"{path}[{number}]")


def check_targets(config: DictConfig) -> None:
    """Hold every _target_ against the signature of what it names; Hydra's own parts name classes that exist."""
    found = dict(targets(resolved(config)))
    assert {"objective", "loss", "dataset", "sampler", "grader"} <= found.keys()
    for path, node in found.items():
        named = get_object(node["_target_"])
        others = EXEMPT | (BESIDE_THE_SURROGATE if path == "loss" else set())
        keywords = {key: value for key, value in node.items() if key not in others}
        given = {"model": None, "tokenizer": None} if path == "sampler" else {}
        inspect.signature(named).bind_partial(**keywords, **given)
    for _, node in targets(OmegaConf.to_container(config.hydra, resolve=False)):
        get_object(node["_target_"])


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=map("/".join, OPTIONS))
def test_every_option_of_every_group_composes(group, option):
    overrides = [f"{group}={option}", *NAMED.get(option, [])]
    config = composed(*overrides)
    assert config.hydra.runtime.choices[group] == option
    check_values(config)
    check_targets(config)
    assert re.fullmatch("[0-9a-f]{8}", hash_config(_root_=config))
    if group != "model":  # their prompts are longer than the tiny experiment's micro-batches
        check_training(config)
        token_level = check_objective(instantiate(config.objective), config.trainer.rollouts.num_generations)
        check_loss(Loss.build(config).surrogate, token_level)


@pytest.mark.parametrize("name", PRIMARIES)
def test_every_script_has_a_config_that_composes(name):
    assert (CONFIGS.parent / "scripts" / f"{name}.py").is_file()
    config = composed(*REQUIRED.get(name, []), name=name)
    check_values(config)
    for _, node in targets(resolved(config)):
        get_object(node["_target_"])


def test_every_script_has_a_config():
    assert sorted(file.stem for file in (CONFIGS.parent / "scripts").glob("*.py")) == PRIMARIES


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "objective"])
def test_every_objective_weighs_groups(option):
    pairs = ["objective.k=2"] if option == "pass_at_k" else []  # two of the mixed group's answers are right
    objective = instantiate(composed(f"objective={option}", *pairs).objective)
    correct = torch.tensor([[False] * 4, [True, False, False, True], [True] * 4])
    known = make_example(4)
    known |= {
        name: torch.cat([known[name], known[name][:1]]) for name in known if isinstance(known[name], torch.Tensor)
    }
    confidence = torch.tensor([[0.9, 0.5, 0.2, 0.1], [0.8, 0.7, 0.3, 0.4], [0.9, 0.8, 0.7, 0.6]])
    named = {"correct": correct, "rewards": correct.float(), "confidence": confidence, "problem_ids": list("abc")}
    named["lengths"] = torch.tensor([[3, 4, 5, 9]] * 3)
    advantages = call_by_name(objective, known | named)
    if advantages.dim() == 3:
        advantages = advantages.sum(dim=2)
    assert advantages.shape == (3, 4)
    assert (advantages.isfinite() | advantages.isnan()).all()
    negative, mixed, positive = advantages.nan_to_num()
    assert positive.any() == (option in TEACHES_POSITIVE)
    assert negative.any() == (option not in SILENT)
    right, wrong = mixed[correct[1]], mixed[~correct[1]]
    if option in ONE_SIDED:
        assert (right >= 0).all() and (wrong <= 0).all() and mixed.any()
    else:
        assert right.min() > 0 > wrong.max()
    if option in ("lens", "lens_strong", "lens_unscaled", "lens_negative_only"):
        assert (negative.diff() > 0).all()  # the surer it was of what is wrong, the worse


def test_the_sampler_the_grader_and_the_recipe_can_be_made(tiny):
    config = composed()
    assert instantiate(config.model.recipe) == TinyRecipe(batch_size=config.model.recipe.batch_size)
    model, tokenizer = tiny
    sampler = instantiate(config.sampler, model=model, tokenizer=tokenizer)
    assert sampler.max_num_seqs == config.sampler.max_num_seqs
    sampler.close()
    with instantiate(config.grader) as grader:
        verdicts = [grade.verdict for grade in grader.grade([r"\boxed{0.5}", r"\boxed{2}"], [r"\frac{1}{2}", "1"])]
    assert verdicts == ["correct", "incorrect"]
    for _, node in targets(OmegaConf.to_container(config.hydra.callbacks)):
        assert instantiate(node).on_multirun_end


def test_the_arithmetic_sets_load_and_share_no_problem():
    config = composed("dataset.arithmetic.size=500", "evaluation.sets.arithmetic.size=100")
    sets = load_evaluation_sets(config.evaluation.sets)
    problems, report = instantiate(config.dataset)(sets)
    assert len(problems) == 500
    assert len(sets["arithmetic"]) == 100
    assert report["arithmetic"]["count"] == 0
    assert set(problems["level"]) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "dataset"])
def test_every_dataset_names_its_loader(option):
    part = instantiate(composed(f"dataset={option}").dataset)
    assert part.func is get_method("lens.problems.load_mixture")
    assert part.keywords["seed"] == 0
    assert part.keywords["decontaminate"] == "report"


def test_a_config_that_cannot_work_is_refused():
    with pytest.raises(ConfigError, match=r"trainer\.memory\.max_tokens_per_microbatch=2048: must be at least"):
        check_training(composed("model=hf", "model.name_or_path=x", "model.prompt.max_length=2048"))


# --- experiments -----------------------------------------------------------------------------------------------------


def sweeps(experiment: str) -> Iterator[list[str]]:
    """The overrides of an experiment's jobs: each value of each key once, the first of the other keys beside it."""
    params = composed(f"experiment={experiment}").hydra.sweeper.params or {}
    parsed = [OverridesParser.create().parse_override(f"{key}={values}") for key, values in params.items()]
    values = {o.get_key_element(): list(o.sweep_string_iterator()) for o in parsed if o.is_sweep_override()}
    values |= {o.get_key_element(): [o.get_value_element_as_str()] for o in parsed if not o.is_sweep_override()}
    firsts = {key: options[0] for key, options in values.items()}
    yield [f"{key}={value}" for key, value in firsts.items()]
    for key, options in values.items():
        for option in options[1:] if key != "seed" else options[1:][-1:]:
            yield [f"{k}={v}" for k, v in (firsts | {key: option}).items()]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_job_of_every_experiment_can_start(experiment):
    hashes = []
    for overrides in sweeps(experiment):
        config = composed(f"experiment={experiment}", *overrides)
        check_values(config)
        check_training(config)
        check_targets(config)
        token_level = check_objective(instantiate(config.objective), config.trainer.rollouts.num_generations)
        check_loss(Loss.build(config).surrogate, token_level)
        hashes.append(hash_config(_root_=config))
    assert len(set(hashes)) == len(hashes), "two jobs would share a folder"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_starts_with_the_command_that_runs_it(experiment):
    package, command, says, *_ = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert package == "# @package _global_"
    assert command.startswith("# python scripts/train.py ")
    assert re.fullmatch(r"# [A-Z].*", says)
    overrides = [word for word in shlex.split(command[2:])[2:] if word != "-m"]
    assert f"experiment={experiment}" in overrides
    sweeping = bool(composed(f"experiment={experiment}").hydra.sweeper.params)
    assert (" -m " in command) == sweeping
    assert composed(*overrides).hydra.runtime.choices.experiment == experiment


def test_what_is_typed_wins_over_the_experiment():
    config = composed("experiment=demo", "evaluation=math500", "dataset=math", "trainer.max_steps=7")
    assert config.hydra.runtime.choices.evaluation == "math500"
    assert list(config.evaluation.sets) == ["math500"]
    assert "math" in config.dataset
    assert config.trainer.max_steps == 7


# --- what the files say ----------------------------------------------------------------------------------------------

SHARES_THE_COMMENT_ABOVE = {
    *("epsilon_high", "log_epsilon_high", "tau_negative"),
    *("adam_eps", "weight_decay", "scale_negative"),
}


def keys_of(file: Path) -> Iterator[tuple[str, bool, bool]]:
    """(dotted key in the composed config, has a comment above it, holds a value) of every key in a file."""
    lines = file.read_text().splitlines()
    in_experiment = option_of(file)[0] in ("experiment", "debug", "world")
    package = [] if in_experiment else [*file.parent.relative_to(CONFIGS).parts]
    stack: list[tuple[int, str]] = []
    for above, line in itertools.pairwise(["", *lines]):
        if not (match := re.fullmatch(r"( *)([\w./]+):(.*)", line)):
            continue
        indent, key, value = len(match[1]), match[2], match[3].strip()
        stack = [*(part for part in stack if part[0] < indent), (indent, key)]
        path = [*package, *(part for _, part in stack)]
        yield ".".join(path), above.lstrip().startswith("#"), bool(value)


DOCUMENTED = {key for file in FILES for key, documented, _ in keys_of(file) if documented}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_every_key_is_explained_where_it_is_set_or_introduced(file):
    """Above the key, or where the key is introduced that the file overrides; Hydra explains its own."""
    if option_of(file)[0] != "experiment":
        assert file.read_text().startswith("# ")
    for key, documented, holds_a_value in keys_of(file):
        *parents, name = key.split(".")
        ours = not {"hydra", "defaults"} & {*parents, name}
        if holds_a_value and ours and name not in EXEMPT | SHARES_THE_COMMENT_ABOVE:
            assert documented or key in DOCUMENTED, f"{file.name}: {key}"


@pytest.mark.parametrize("key", sorted(SHARES_THE_COMMENT_ABOVE))
def test_keys_that_share_a_comment_stand_right_below_it(key):
    defining = [*(CONFIGS / "loss").glob("*.yaml"), CONFIGS / "optimizer/adamw.yaml", CONFIGS / "objective/lens.yaml"]
    lines = [line for file in defining for line in file.read_text().splitlines()]
    places = [number for number, line in enumerate(lines) if line.startswith(f"{key}:")]
    assert places
    for place in places:
        while re.match(r"\w+:", lines[place]):
            place -= 1
        assert lines[place].startswith("# ")


@pytest.mark.parametrize(
    "group",
    ["trainer/default", "loss/base", "optimizer/adamw", "evaluation/base", "tracking/wandb", "model/tiny"],
)
def test_no_option_is_without_effect(group):
    """Each key, those of sections included, is read somewhere in lens/; that a rule checks it is no use."""
    code = "".join(file.read_text() for file in LENS.rglob("*.py") if file != LENS / "config" / "checks.py")
    owners = "s|t|r|self|loss|settings|trainer|rollouts|memory|checkpoints|evaluation|model|wandb"
    read = set(re.findall(rf"\b(?=(?:{owners})\.(\w+))", code))
    config = OmegaConf.load(CONFIGS / f"{group}.yaml")
    if group.startswith("tracking"):
        config = config.wandb
    sections = [config[name] for name in ("rollouts", "memory", "checkpoints") if name in config]
    assert {key for section in (config, *sections) for key in section} - read - EXEMPT == set()


def test_everything_in_a_section_that_is_unpacked_is_taken():
    from lens.problems.prompts import PromptFormat

    for option in ("tiny", "hf"):
        prompt = OmegaConf.load(CONFIGS / "model" / f"{option}.yaml").prompt
        inspect.signature(PromptFormat).bind(**prompt)
