"""The objectives by name, without Hydra: the names and the values of configs/objective, which a test compares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from lens import objectives as zoo
from lens.objectives.entropy_target import EntropyTarget
from lens.objectives.inputs import VOCABULARY, InputError, find_inputs
from lens.objectives.mass_share import MassShare
from lens.objectives.pass_g import PassG
from lens.objectives.spo import SPO

Objective = Callable[..., Tensor]

FUNCTIONS: dict[str, Objective] = {
    "ace": zoo.ace_advantages,
    "dr_grpo": partial(zoo.grpo_advantages, scale_by_std=False),
    "grpo": zoo.grpo_advantages,
    "lens": zoo.lens_advantages,
    "lens_mixed_only": partial(zoo.lens_advantages, groups="mixed"),
    "lens_mixture": zoo.lens_mixture_advantages,
    "lens_negative_only": partial(zoo.lens_advantages, groups="negative"),
    "lens_rho_length": partial(zoo.lens_advantages, rho=0.9),
    "lens_rho_one": partial(zoo.lens_advantages, rho=1.0),
    "lens_rho_policy": partial(zoo.lens_advantages, rho="policy"),
    "lens_sequence_dimp": partial(zoo.lens_advantages, difficulty="sequence"),
    "lens_shuffled": zoo.shuffled_advantages,
    "lens_strong": partial(zoo.lens_advantages, alpha=4.0),
    "lens_unscaled": partial(zoo.lens_advantages, scale_negative=1.0),
    "max_rl": zoo.max_rl_advantages,
    "ngrpo": zoo.ngrpo_advantages,
    "nsr": partial(zoo.w_reinforce_advantages, right_weight=None),
    "pass_at_k": partial(zoo.pass_at_k_advantages, k=4),
    "psr": partial(zoo.w_reinforce_advantages, right_weight=1.0, wrong_weight=None),
    "qae": zoo.qae_advantages,
    "reinforce_pp_baseline": zoo.reinforce_pp_baseline_advantages,
    "rl_zvp": zoo.rl_zvp_advantages,
    "rloo": zoo.rloo_advantages,
    "token_lens": zoo.token_lens_advantages,
    "uniform": zoo.uniform_advantages,
    "unlikeliness": zoo.unlikeliness_advantages,
    "w_reinforce": zoo.w_reinforce_advantages,
}
# These remember earlier rounds. Each name makes a new object.
CLASSES: dict[str, Callable[..., Objective]] = {"pass_g": PassG, "spo": SPO}
# So do these, and another objective is inside them: a name or a function.
WRAPPERS: dict[str, Callable[..., Objective]] = {
    "entropy_target": partial(EntropyTarget, strength=4.0),
    "share": MassShare,
}
NAMES = sorted({*FUNCTIONS, *CLASSES, *WRAPPERS})


def make_objective(objective: str | Objective, /, **options: Any) -> Objective:
    """Return an objective: a function of [Q, G] inputs, or an object that remembers earlier rounds.

    Args:
        objective: a name of configs/objective, with the values that stand there; or a function or an object of your
            own, which names its inputs as docs/extending.md says.
        options: in place of these values, such as ``alpha=1.0``. The wrappers ``share`` and ``entropy_target`` also
            take ``objective``, the name or the function inside them (default: "uniform").

    Raises:
        InputError: the name is not known, an option does not exist, or an object that is made already gets options.
    """
    if not isinstance(objective, str):
        if not callable(objective):
            raise InputError(f"objective={objective!r}: a function, or one of {', '.join(NAMES)}")
        return _with_options(repr(objective), objective, options)
    if objective in FUNCTIONS:
        return _with_options(objective, FUNCTIONS[objective], options)
    if objective in WRAPPERS:
        inside = make_objective(options.pop("objective", "uniform"))
        return _made(objective, partial(WRAPPERS[objective], inside), options)
    if objective in CLASSES:
        return _made(objective, CLASSES[objective], options)
    raise InputError(f"objective={objective!r}: one of {', '.join(NAMES)}, or a function")


def remembers(objective: str | Objective) -> bool:
    """Return whether an objective, or the one of this name, has a memory of earlier rounds."""
    return (
        objective in CLASSES or objective in WRAPPERS
        if isinstance(objective, str)
        else hasattr(objective, "state_dict")
    )


def _with_options(name: str, function: Objective, options: dict[str, Any]) -> Objective:
    """Return the function with its options set, which it must have."""
    if inputs := sorted(set(options) & set(VOCABULARY)):
        raise InputError(f"objective {name}: {', '.join(inputs)} is an input, not an option")
    if options and remembers(function):
        raise InputError(f"objective {name}: it is made already, so it takes no options ({', '.join(options)})")
    made = partial(function, **options) if options else function
    try:
        find_inputs(made)
    except InputError as error:
        raise InputError(f"objective {name}: {error}") from error
    return made


def _made(name: str, make: Callable[..., Objective], options: dict[str, Any]) -> Objective:
    """Return the object of a class, made with these options."""
    try:
        return make(**options)
    except TypeError as error:
        raise InputError(f"objective {name}: {error}") from error
