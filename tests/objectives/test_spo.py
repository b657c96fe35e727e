"""SPO over several rounds, by hand and against the memory written out in plain Python."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens.objectives.spo import SPO
from tests.support.rounding import IN_A_GROUP
from tests.support.rounds import (
    check_a_state_goes_on,
    check_invalid_answers_take_no_part,
    check_order_does_not_matter,
    rounds,
)

T, F = True, False


def test_two_rounds_by_hand():
    spo = SPO()
    # Nothing is known, so v = 1/2: 1/2 and three times -1/2. Mean -1/4; deviations 3/4 and three times -1/4;
    # variance (9 + 3)/16 / 3 = 1/4, standard deviation 1/2.
    first = spo(torch.tensor([[T, F], [F, F]]), problem_ids=["a", "b"])
    assert first.flatten().tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=IN_A_GROUP)
    # Then a has 7/16 + 1 of both, v = 1/2; b has 7/16 and 7/16 + 2, v = 7/46. In 46ths: 23, -23, 39, -7, mean 8.
    # Deviations 15, -31, 31, -15; variance (2 * 225 + 2 * 961)/3 = 2372/3, over 46^2.
    second = spo(torch.tensor([[T, F], [T, F]]), problem_ids=["a", "b"])
    expected = [n / math.sqrt(2372 / 3) for n in (15, -31, 31, -15)]
    assert second.flatten().tolist() == pytest.approx(expected, abs=IN_A_GROUP)


def test_the_round_s_own_verdicts_do_not_move_its_baseline():
    # Were v of the second problem taken after the round, its right answers would earn less than those of the first.
    advantages = SPO()(torch.tensor([[T, F, F, F], [T, T, T, F]]), problem_ids=["a", "b"])
    assert advantages[0, 0] == advantages[1, 0]


def test_a_round_in_which_nothing_surprises_gives_exactly_zero():
    spo = SPO()
    for _ in range(3):
        assert spo(torch.zeros(2, 3, dtype=torch.bool), problem_ids=["a", "b"]).tolist() == [[0.0] * 3] * 2


def test_the_mean_of_the_round_is_subtracted_once_more():
    # All v are 1/2, so a negative group gets -1/2 less the mean of the round, which has three right of four: -3/4.
    advantages = SPO()(torch.tensor([[T, T, T], [F, T, F], [T, T, T], [F, T, T]]), problem_ids=list("abcd"))
    assert advantages.double().sum().item() == pytest.approx(0, abs=12 * IN_A_GROUP)
    assert advantages[1, 0].item() == pytest.approx(-0.75 / math.sqrt((9 * 1 / 16 + 3 * 9 / 16) / 11), rel=IN_A_GROUP)


def test_with_one_answer_a_problem_it_is_the_paper_s():
    """Plain Python: counts decay and take in the reward after the advantage; then the batch is whitened."""
    generator = torch.Generator().manual_seed(0)
    spo, counts = SPO(decay=0.9), {}
    for _ in range(6):
        names = [f"p{n}" for n in torch.randperm(5, generator=generator)[:4].tolist()]
        verdicts = (torch.rand(4, generator=generator) < 0.5).tolist()
        raw = []
        for name, verdict in zip(names, verdicts, strict=True):
            a, b = counts.get(name, (0.5, 0.5))
            raw.append(verdict - a / (a + b))
            counts[name] = (0.9 * a + verdict, 0.9 * b + 1 - verdict)
        mean, deviation = statistics.fmean(raw), statistics.stdev(raw)
        actual = spo(torch.tensor(verdicts).view(4, 1), problem_ids=names)
        assert actual.flatten().tolist() == pytest.approx([(x - mean) / deviation for x in raw], abs=1e-6)


@given(rounds())
def test_any_second_round_agrees_with_plain_python(round_):
    spo = SPO()
    round_.run(spo)
    raw = []
    for q in range(len(round_.correct)):
        verdicts = round_.correct[q][round_.valid[q]].tolist()
        decayed = 0.5 if not verdicts else 0.5 * 0.875
        v = (decayed + sum(verdicts)) / (2 * decayed + len(verdicts))
        raw += [verdict - v for verdict in verdicts]
    expected = [0.0] * len(raw)
    if len(raw) > 1 and max(raw) - min(raw) > 1e-9:
        expected = [(x - statistics.fmean(raw)) / statistics.stdev(raw) for x in raw]
    assert round_.run(spo)[round_.valid].tolist() == pytest.approx(expected, abs=1e-5)


def test_rewards_enter_advantages_and_verdicts_the_memory():
    spo = SPO()
    rewards = torch.tensor([[0.5, 0.0], [0.0, -1.0]])  # less v: 0, -1/2, -1/2, -3/2; mean -5/8
    shaped = spo(torch.tensor([[T, F], [F, F]]), problem_ids=["a", "b"], rewards=rewards)
    # Deviations in eighths: 5, 1, 1, -7; variance (25 + 1 + 1 + 49)/3, over 8^2.
    assert shaped.flatten().tolist() == pytest.approx([n / math.sqrt(76 / 3) for n in (5, 1, 1, -7)], abs=IN_A_GROUP)
    plain = SPO()
    plain(torch.tensor([[T, F], [F, F]]), problem_ids=["a", "b"])
    assert spo.state_dict() == plain.state_dict()


@given(rounds(), rounds())
def test_a_state_in_the_middle_goes_on_bit_by_bit(first, second):
    check_a_state_goes_on(SPO, first, second)


@given(rounds(), st.randoms(use_true_random=False))
def test_order_does_not_matter(round_, random):
    check_order_does_not_matter(SPO, round_, random)


@given(rounds(), st.integers(0, 2**32 - 1))
def test_invalid_answers_take_no_part(round_, seed):
    check_invalid_answers_take_no_part(SPO, round_, seed)


@pytest.mark.parametrize("options", [{"decay": 1.5}, {"decay": -1.0}, {"eps": -1e-8}])
def test_values_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SPO(**options)
