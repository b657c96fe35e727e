"""Random rounds of answers for tests of objectives, and what every objective has to hold on any of them."""

from __future__ import annotations

import copy
import random as randomness
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from lens.objectives.inputs import call_by_name
from tests.support.rounding import rounding

TOKENS = 5


@dataclass(frozen=True)
class Round:
    """What objectives may name of Q questions with G answers each. NaN lies outside the mask."""

    correct: Tensor
    valid: Tensor
    mask: Tensor
    logprobs: Tensor
    reference_logprobs: Tensor
    entropies: Tensor
    problem_ids: list[str]

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(dim=2)

    @property
    def confidence(self) -> Tensor:
        return (self.logprobs.nansum(dim=2) / self.lengths).exp()

    @property
    def kinds(self) -> list[str]:
        """The kind of each group, by counting its valid answers."""
        counts = zip((self.correct & self.valid).sum(dim=1).tolist(), self.valid.sum(dim=1).tolist(), strict=True)
        return ["none" if n == 0 else "negative" if c == 0 else "positive" if c == n else "mixed" for c, n in counts]

    def run(self, objective: Callable[..., Tensor]) -> Tensor:
        """Call an objective with what it names."""
        names = ("correct", "valid", "mask", "logprobs", "reference_logprobs", "entropies", "problem_ids")
        given = {name: getattr(self, name) for name in (*names, "lengths", "confidence")}
        return call_by_name(objective, given)

    def select(self, questions: list[int], answers: Tensor) -> Round:
        """These questions, and of each the answers [Q, G] in this order."""

        def of_answers(values: Tensor) -> Tensor:
            return torch.stack([values[q][order] for q, order in zip(questions, answers, strict=True)])

        names = ("correct", "valid", "mask", "logprobs", "reference_logprobs", "entropies")
        picked = {name: of_answers(getattr(self, name)) for name in names}
        return replace(self, problem_ids=[self.problem_ids[q] for q in questions], **picked)

    def with_an_invalid_answer(self, generator: torch.Generator) -> Round:
        """The same round with one more answer a question, of any content, that may not teach."""
        extra = draw_round(len(self.correct), 1, generator)
        names = ("correct", "valid", "mask", "logprobs", "reference_logprobs", "entropies")
        longer = {name: torch.cat([getattr(self, name), getattr(extra, name)], dim=1) for name in names}
        longer["valid"][:, -1] = False
        return replace(self, **longer)


def draw_round(questions: int, size: int, generator: torch.Generator, *, every_valid: bool = False) -> Round:
    """A round with groups of all kinds. Its log-probabilities and entropies are on a grid, so that some are equal."""

    def on_grid(lowest: int) -> Tensor:
        values = torch.randint(lowest, 1, (questions, size, TOKENS), generator=generator) / 16
        return torch.where(mask, values, torch.nan)

    share = torch.tensor([0.0, 0.5, 1.0])[torch.randint(0, 3, (questions, 1), generator=generator)]
    correct = torch.rand(questions, size, generator=generator) < share
    valid = every_valid | (torch.rand(questions, size, generator=generator) < 0.8)
    lengths = torch.randint(1, TOKENS + 1, (questions, size, 1), generator=generator)
    mask = torch.arange(TOKENS) < lengths
    names = [f"problem {number}" for number in range(questions)]
    return Round(correct, valid, mask, on_grid(-24), on_grid(-24), -on_grid(-24), names)


def rounds(*, every_valid: bool = False) -> st.SearchStrategy[Round]:
    """Rounds of one to five questions with one to seven answers."""

    def draw(seed: int, questions: int, size: int) -> Round:
        return draw_round(questions, size, torch.Generator().manual_seed(seed), every_valid=every_valid)

    return st.builds(draw, st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 7))


def check_order_does_not_matter(make: Callable[[], Callable], round_: Round, random: randomness.Random) -> None:
    """Answers in another order, and questions too, have the same advantages in that order. Twice, for a memory."""
    questions, size = round_.correct.shape
    order = random.sample(range(questions), questions)
    answers = torch.tensor([random.sample(range(size), size) for _ in order])
    plain, shuffled = make(), make()
    for _ in range(2):
        advantages = round_.run(plain)
        expected = torch.stack([advantages[q][row] for q, row in zip(order, answers, strict=True)])
        actual = round_.select(order, answers).run(shuffled)
        torch.testing.assert_close(actual, expected, atol=close(round_), rtol=close(round_))


def check_invalid_answers_take_no_part(make: Callable[[], Callable], round_: Round, seed: int) -> None:
    """Invalid answers get exactly 0, as do tokens that are none; one more of them changes nothing. Twice, as above."""
    longer = round_.with_an_invalid_answer(torch.Generator().manual_seed(seed))
    plain, other = make(), make()
    for _ in range(2):
        expected, actual = round_.run(plain), longer.run(other)
        assert expected.dtype == actual.dtype == torch.float32
        teaches = longer.valid if actual.dim() == 2 else longer.mask & longer.valid.unsqueeze(-1)
        assert (actual[~teaches] == 0).all()
        assert actual.isfinite().all()
        torch.testing.assert_close(actual[:, :-1], expected, atol=close(round_), rtol=close(round_))


def check_a_state_goes_on(make: Callable[[], Callable], first: Round, second: Round) -> None:
    """Saved after one round and loaded elsewhere, an objective's memory gives the same bits as one that went on."""
    through, stopped, resumed = make(), make(), make()
    for objective in (through, stopped):
        first.run(objective)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    for _ in range(2):
        assert torch.equal(second.run(resumed), second.run(through))
    assert resumed.state_dict() == through.state_dict()


def close(round_: Round) -> float:
    """How far two ways of adding up a round's numbers may differ in float32, for numbers of size 1."""
    return rounding("float32", round_.mask.numel())
