"""The benchmark's update by TRL is the update that lens makes: the same answers, and the same gradient."""

from __future__ import annotations

import pytest

from lens.benchmarking.trl import open_trl_update
from lens.benchmarking.workload import Workload, make_every_answer_teach, make_up_rollouts
from lens.training.update import compute_gradient
from tests.support.benchmarks import composed
from tests.support.gradients import error, flat_gradient

pytest.importorskip("trl", reason="TRL is not installed here: make test-trl has an environment with it")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [2, 8])
def test_the_gradient_of_trl_is_that_of_lens(tiny_folder, size):
    work = Workload.load(composed(tiny_folder, "part=update", f"trl.per_device_train_batch_size={size}"))
    batch = make_every_answer_teach(make_up_rollouts(work, shortest_share=0.3))
    assert len(set(batch.rollouts.lengths.tolist())) > 2
    with open_trl_update(work) as write_gradient:
        write_gradient(batch)
    of_trl = flat_gradient(work.model).clone()
    compute_gradient(work.model, batch, work.loss, work.forward_pass)
    assert error(flat_gradient(work.model), of_trl) < 1e-4
