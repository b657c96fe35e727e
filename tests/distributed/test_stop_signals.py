"""Signals become wishes: SIGINT ends the step first, SIGTERM abandons what may be abandoned."""

from __future__ import annotations

import random
import signal

import pytest

from lens.distributed.stop_signals import StopSignals
from lens.errors import StopRequested


@pytest.fixture
def stop():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals().listening() as signals:
        yield signals
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_first_ctrl_c_is_a_wish_and_the_second_means_now(stop):
    assert not stop.is_requested()
    with stop.abandonable():
        signal.raise_signal(signal.SIGINT)
    assert stop.is_requested()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_sigterm_abandons_work_and_puts_random_numbers_back(stop):
    before = random.getstate()
    with pytest.raises(StopRequested), stop.abandonable():
        random.random()
        signal.raise_signal(signal.SIGTERM)
    assert stop.is_requested()
    assert random.getstate() == before


def test_sigterm_leaves_other_work_whole_and_lets_no_new_begin(stop):
    done = []
    signal.raise_signal(signal.SIGTERM)
    done.append("whole")
    with pytest.raises(StopRequested), stop.abandonable():
        done.append("begun")
    assert done == ["whole"]
    signal.raise_signal(signal.SIGTERM)  # no more than the first
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
