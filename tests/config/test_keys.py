"""The keys that decide a run's results."""

from __future__ import annotations

import re

from lens.config.keys import hash_config
from tests.support.configs import composed


def test_the_hash_of_a_config_depends_on_what_decides_the_results():
    def hashed(*overrides: str) -> str:
        return hash_config(_root_=composed(*overrides))

    plain = hashed()
    assert re.fullmatch("[0-9a-f]{8}", plain)
    alike = ["outputs=/elsewhere", "check_golds=false", "tracking.wandb.mode=offline", "resume=never"]
    assert {hashed(override) for override in [*alike, "jobs=7"]} == {plain}
    different = ["seed=1", "objective=grpo", "objective.alpha=0.5", "trainer.max_steps=61", "dataset.seed=1"]
    assert len({plain, *(hashed(override) for override in different)}) == 1 + len(different)
