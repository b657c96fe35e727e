"""What tests of models share."""

from __future__ import annotations

import pytest

from lens.sampling.rollouts import Rollouts
from tests.support.rollouts import LENGTHS, PROMPT_LENGTHS, random_rollouts


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return random_rollouts(PROMPT_LENGTHS, LENGTHS)
