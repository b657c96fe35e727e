"""A state survives its way through a checkpoint, and knows the best evaluation."""

from __future__ import annotations

import pytest
import torch

from lens.training.train_state import TrainState, choose_questions


def test_a_state_survives_torch(tmp_path):
    state = TrainState(step=3, round=2, totals={"tokens_generated": 7}, evaluation={"eval/a/pass@1": 0.5})
    state.evaluated_at, state.best = 2, {"metric": "pass@1", "step": 2, "value": 0.5}
    torch.save({**state.state(), "optimizer": {}}, tmp_path / "state.pt")
    assert TrainState.from_state(torch.load(tmp_path / "state.pt", weights_only=True)) == state


def test_the_best_is_a_mean_over_sets_and_has_to_be_better():
    state = TrainState()

    def evaluated(step: int, a: float, b: float, metric: str = "pass@1") -> bool:
        state.step = step
        levels = {"eval/a/level_1/pass@1": 1.0, "eval/a/levels_4-5/pass@1": 1.0, "eval/a/pass@16": 1.0}
        state.evaluation = {"eval/a/pass@1": a, "eval/b/pass@1": b, "eval/a/pass@2": 0.1, **levels}
        return state.update_best(metric)

    assert not evaluated(0, 0.9, 0.9)  # before the first update there is nothing to keep
    assert evaluated(2, 0.1, 0.3)
    assert state.best == {"metric": "pass@1", "step": 2, "value": pytest.approx(0.2)}
    assert not evaluated(4, 0.3, 0.1)
    assert evaluated(6, 0.0, 0.5)
    assert evaluated(8, 0.0, 0.0, metric="pass@2")  # another measure starts anew
    assert state.best == {"metric": "pass@2", "step": 8, "value": 0.1}


def test_an_epoch_meets_every_problem_once_and_the_next_in_another_order():
    rounds = [choose_questions(22, 4, seed=3, number=number) for number in range(10)]
    first, second = ([problem for questions in epoch for problem in questions] for epoch in (rounds[:5], rounds[5:]))
    assert len(set(first)) == len(set(second)) == 20
    assert first != second
    assert choose_questions(22, 4, seed=3, number=7) == rounds[7]
    assert choose_questions(22, 4, seed=4, number=7) != rounds[7]
