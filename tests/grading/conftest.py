"""What tests of grading share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lens.grading.pool import Grader


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(num_workers=2) as shared:
        yield shared
