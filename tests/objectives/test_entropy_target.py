"""The controller of the entropy: the strength by hand, what it leaves alone, and that a state goes on."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from lens.objectives import grpo_advantages, token_lens_advantages, uniform_advantages
from lens.objectives.entropy_target import EntropyTarget
from lens.objectives.pass_g import PassG

CORRECT = torch.tensor([[True, False], [False, False]])
MASK = torch.tensor([[[1, 1], [1, 0]], [[1, 1], [1, 0]]]).bool()
PENALTY = partial(uniform_advantages, alpha=1.0)


def surprised(nats: float) -> Tensor:
    """Log-probabilities whose mean over real tokens is -nats; what lies outside the mask must not count."""
    return torch.where(MASK, torch.tensor([[[-1.5, -1.0], [-0.5, 0]]]) * nats, 99.0)


def test_two_rounds_by_hand():
    """Target 1 nat of 2. Entropy 2, then 0.5; averages 2 and 1.25; factors exp(-0.2 * 1) and exp(-0.2 * 0.25)."""
    target = EntropyTarget(PENALTY, strength=4.0, target=0.5, rate=0.2, decay=0.5)
    first = target(CORRECT, logprobs=surprised(2.0), mask=MASK)
    assert first[1].tolist() == [-2, -2]  # 4 times the penalty of 1/2
    assert torch.equal(first[0], grpo_advantages(CORRECT)[0])
    assert target.strength == pytest.approx(4 * math.exp(-0.2))
    second = target(CORRECT, logprobs=surprised(0.5), mask=MASK)
    assert second[1].tolist() == pytest.approx([-2 * math.exp(-0.2)] * 2)
    assert target.strength == pytest.approx(4 * math.exp(-0.2 - 0.2 * 0.25))


def test_the_strength_rises_below_the_target_up_to_its_limit():
    target = EntropyTarget(PENALTY, strength=1.0, target=1.0, rate=1.0, decay=0.0, max_strength=2.0)
    target(CORRECT, logprobs=surprised(1.0), mask=MASK)
    assert target.strength == 1
    target(CORRECT, logprobs=surprised(0.8), mask=MASK)
    assert target.strength == pytest.approx(math.exp(0.2))
    target(CORRECT, logprobs=surprised(0.0), mask=MASK)
    assert target.strength == 2
    assert EntropyTarget(PENALTY, strength=5.0, max_strength=2.0).strength == 2


def test_a_policy_without_entropy_leaves_the_strength_alone():
    target = EntropyTarget(PENALTY)
    target(CORRECT, logprobs=surprised(0.0), mask=MASK)
    assert target.strength == 1


def test_a_state_goes_on_with_the_memory_of_the_objective_inside():
    def make() -> EntropyTarget:
        return EntropyTarget(PassG(alpha=1.0), rate=0.3)

    rounds = [surprised(nats) for nats in (1.0, 0.4, 2.0)]
    given = {"mask": MASK, "problem_ids": ["a", "b"]}
    whole, parts = make(), make()
    expected = [whole(CORRECT, logprobs=logprobs, **given) for logprobs in rounds]
    parts(CORRECT, logprobs=rounds[0], **given)
    fresh = make()
    fresh.load_state_dict(parts.state_dict())
    for logprobs, advantages in zip(rounds[1:], expected[1:], strict=True):
        assert torch.equal(fresh(CORRECT, logprobs=logprobs, **given), advantages)
    assert fresh.state_dict() == whole.state_dict()


def test_it_names_what_the_objective_inside_names_and_weighs_tokens_too():
    target = EntropyTarget(token_lens_advantages, strength=3.0)
    assert target.inputs >= {"logprobs", "mask", "correct", "valid", "rewards"}
    given = {"logprobs": surprised(1.0), "mask": MASK}
    inner = token_lens_advantages(CORRECT, **given)
    torch.testing.assert_close(target(CORRECT, **given), torch.stack([inner[0], 3 * inner[1]]))


@pytest.mark.parametrize(
    ("options", "says"), [({"target": 0.0}, "target=0"), ({"decay": 1.0}, "decay=1"), ({"rate": -1.0}, "rate=-1")]
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        EntropyTarget(PENALTY, **options)
