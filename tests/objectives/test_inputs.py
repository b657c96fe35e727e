"""An objective gets what its signature names, and nothing else."""

from __future__ import annotations

import functools
import re

import pytest
import torch

from lens.files import CONFIGS
from lens.objectives import grpo_advantages, lens_advantages
from lens.objectives.inputs import VOCABULARY, InputError, call_by_name, find_inputs

AVAILABLE = dict.fromkeys(VOCABULARY) | {"correct": "verdicts", "lengths": "tokens"}


def test_inputs_are_the_parameters_that_the_vocabulary_knows():
    def own(correct, *, entropies, boost=0.1, valid=None):
        raise AssertionError("it is not called")

    assert find_inputs(own) == {"correct", "entropies", "valid"}
    assert find_inputs(functools.partial(own, boost=2)) == {"correct", "entropies", "valid"}
    assert "entropies" not in find_inputs(grpo_advantages) | find_inputs(lens_advantages)


def test_an_object_can_say_what_the_objective_inside_it_asks_for():
    class Wrapper:
        inputs = frozenset({"correct", "mask"})

        def __call__(self, **given):
            return given

    assert find_inputs(Wrapper()) == {"correct", "mask"}
    assert call_by_name(Wrapper(), AVAILABLE) == {"correct": "verdicts"}


def test_a_function_gets_what_it_asks_for_by_name_and_keeps_its_defaults():
    def own(lengths, *, correct, entropies="mine", boost=0.1):
        return lengths, correct, entropies, boost

    assert call_by_name(own, AVAILABLE) == ("tokens", "verdicts", "mine", 0.1)
    assert call_by_name(functools.partial(own, boost=3), AVAILABLE) == ("tokens", "verdicts", "mine", 3)


def test_what_nobody_knows_is_refused_by_name():
    def unknown(correct, *, rewrads, boost):
        raise AssertionError("it is not called")

    def positional(correct, /):
        raise AssertionError("it is not called")

    def absent(correct, *, entropies):
        raise AssertionError("it is not called")

    with pytest.raises(InputError, match=r"asks for rewrads, boost, which must have a default or be one of rewards, "):
        find_inputs(unknown)
    with pytest.raises(InputError, match="asks for correct, which"):
        find_inputs(positional)
    with pytest.raises(InputError, match="asks for entropies, which is not known here"):
        call_by_name(absent, AVAILABLE)


def test_the_docs_list_the_whole_vocabulary():
    page = (CONFIGS.parent / "docs" / "extending.md").read_text().partition("## A dataset")[0]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(VOCABULARY)


def test_rewards_take_the_place_of_verdicts_and_zeros_and_ones_change_nothing():
    generator = torch.Generator().manual_seed(0)
    correct = torch.rand(50, 6, generator=generator) < 0.3
    confidence = 0.05 + 0.9 * torch.rand(50, 6, generator=generator)
    for objective in (grpo_advantages, lens_advantages):
        plain = objective(correct, confidence)
        assert torch.equal(objective(correct, confidence, rewards=correct.float()), plain)
        assert not torch.equal(objective(correct, confidence, rewards=correct.float() - 0.5 * confidence), plain)
