"""Lists what an objective can ask for, and calls it with what its signature names.

An objective says with the names of its parameters what it needs. It gets these as keyword arguments, and nothing else.
Its other parameters are its options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

# G answers to each of Q questions, of at most T tokens. docs/extending.md explains each.
VOCABULARY = (
    "rewards",  # float32 [Q, G]
    "correct",  # bool [Q, G]
    "valid",  # bool [Q, G]
    "truncated",  # bool [Q, G]
    "confidence",  # float32 [Q, G]
    "lengths",  # int64 [Q, G]
    "mask",  # bool [Q, G, T]
    "logprobs",  # float32 [Q, G, T]
    "entropies",  # float32 [Q, G, T]; asking for them makes the policy rate all answers
    "reference_logprobs",  # float32 [Q, G, T]; asking for them makes the first model rate all answers
    "problem_ids",  # Q strings
    "step",  # int
    "max_completion_length",  # int
)


class InputError(ValueError):
    """Says that a function asks for something that there is not."""


def find_inputs(function: Callable[..., Any], vocabulary: Collection[str] = VOCABULARY) -> frozenset[str]:
    """Return the names of the vocabulary that a function asks for.

    These are parameters of its signature. A function that passes its inputs on to another has an attribute ``inputs``
    with their names instead.

    Raises:
        InputError: it has a parameter without a default that the vocabulary does not know, or lacks one of its options.
    """
    if (declared := getattr(function, "inputs", None)) is not None:
        return frozenset(declared)
    try:
        if keywords := getattr(function, "keywords", None):
            inspect.signature(function.func).bind_partial(**keywords)
        parameters = inspect.signature(function).parameters.values()
    except TypeError as error:
        raise InputError(str(error)) from error
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [p.name for p in parameters if p.kind == p.POSITIONAL_ONLY]
    unknown += [p.name for p in named if p.default is p.empty and p.name not in vocabulary]
    if unknown:
        known = ", ".join(vocabulary)
        raise InputError(f"asks for {', '.join(unknown)}, which must have a default or be one of {known}")
    return frozenset(p.name for p in named if p.name in vocabulary)


def call_by_name(
    function: Callable[..., Any], available: Mapping[str, Any], vocabulary: Collection[str] = VOCABULARY
) -> Any:
    """Call a function with those of the available values that it asks for; a value that is None is not available.

    Raises:
        InputError: it asks for a value that is not available, and has no default for it.
    """
    asked = find_inputs(function, vocabulary)
    given = {name: available[name] for name in sorted(asked) if available.get(name) is not None}
    if (lacking := asked - set(given)) and not hasattr(function, "inputs"):
        parameters = inspect.signature(function).parameters
        if missing := [name for name in parameters if name in lacking and is_needed(parameters[name])]:
            raise InputError(f"asks for {', '.join(missing)}, which is not known here")
    return function(**given)


def is_needed(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter has no default."""
    return parameter.default is parameter.empty
