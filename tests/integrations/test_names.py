"""The names without Hydra are those of configs/objective, and mean the same."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lens.files import CONFIGS
from lens.integrations import make_objective
from lens.integrations.names import FUNCTIONS, NAMES, remembers
from lens.objectives import grpo_advantages, lens_advantages
from lens.objectives.inputs import InputError
from lens.objectives.spo import SPO

CONFIGURED = sorted(file.stem for file in (CONFIGS / "objective").glob("*.yaml"))


def configured(name: str) -> Any:
    """The objective of a config file."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return instantiate(compose(f"objective/{name}").objective)


def with_options(function: Any) -> tuple[Any, dict[str, Any]]:
    """A function and all its options, those it has by default too."""
    inside = function.func if isinstance(function, functools.partial) else function
    defaults = {p.name: p.default for p in inspect.signature(inside).parameters.values() if p.default is not p.empty}
    return inside, defaults | getattr(function, "keywords", {})


def test_there_is_a_name_for_every_config():
    assert NAMES == CONFIGURED


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_name_means_what_its_config_says(name):
    assert with_options(make_objective(name)) == with_options(configured(name))


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FUNCTIONS)))
def test_the_name_of_an_objective_with_a_memory_means_what_its_config_says(name):
    ours, theirs = make_objective(name), configured(name)
    assert type(ours) is type(theirs) and ours.state_dict() == theirs.state_dict()
    inside = [vars(o).pop("objective", grpo_advantages) for o in (ours, theirs)]
    trackers = [vars(o).pop("tracker", None) for o in (ours, theirs)]
    assert with_options(inside[0]) == with_options(inside[1])
    assert getattr(trackers[0], "decay", None) == getattr(trackers[1], "decay", None)
    assert vars(ours) == vars(theirs)


def test_options_take_the_place_of_a_name_s_own():
    made = make_objective("lens_strong", alpha=1.0)
    assert with_options(made) == with_options(functools.partial(lens_advantages, alpha=1.0))
    assert make_objective(grpo_advantages) is grpo_advantages


def test_a_wrapper_takes_the_objective_inside_by_name():
    made = make_objective("share", objective="lens", share=0.3)
    assert made.objective is lens_advantages and made.share == 0.3
    assert make_objective("entropy_target", objective=grpo_advantages).objective is grpo_advantages


def test_what_remembers():
    assert remembers("spo") and remembers("share") and remembers(SPO())
    assert not remembers("lens") and not remembers(lens_advantages)


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("lns", {}, "one of ace, dr_grpo, entropy_target, grpo, lens, "),
        (3, {}, "a function, or one of"),
        ("lens", {"alhpa": 1}, "alhpa"),
        ("lens", {"confidence": 1}, "confidence is an input, not an option"),
        ("spo", {"dcay": 1}, "dcay"),
        ("share", {"objective": "lns"}, "objective='lns'"),
        (SPO(), {"decay": 0.5}, "takes no options"),
        (lambda rewards, colour: rewards, {}, "asks for colour"),
    ],
)
def test_what_cannot_work_is_refused(objective, options, message):
    with pytest.raises(InputError, match=message):
        make_objective(objective, **options)
