"""The file in a trainer's checkpoint that holds what an objective remembers."""

from __future__ import annotations

import pytest

from lens.integrations.memory import MEMORY, read_memory, write_memory


def test_what_is_written_is_read_and_nothing_else_stays(tmp_path):
    for memory in ({"a": 1.5}, {"a": 2.5, "b": [0, 1]}):
        write_memory(tmp_path / MEMORY, memory)
        assert read_memory(tmp_path / MEMORY) == memory
    assert [file.name for file in tmp_path.iterdir()] == [MEMORY]


def test_a_checkpoint_without_it_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{MEMORY} is missing: the objective remembers"):
        read_memory(tmp_path / MEMORY)
