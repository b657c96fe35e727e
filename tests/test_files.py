"""Files that are there whole or not at all."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from lens.files import write_json, write_parquet
from tests.support.faults import no_file_above


def test_files_appear_whole(tmp_path):
    write_json(tmp_path / "a" / "value.json", {"x": 1})
    frame = pd.DataFrame({"x": [1, 2]})
    write_parquet(tmp_path / "a" / "rows.parquet", frame)
    assert json.loads((tmp_path / "a" / "value.json").read_text()) == {"x": 1}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a" / "rows.parquet"), frame)


def test_files_that_do_not_fit_leave_those_before_them(tmp_path):
    frame, more = pd.DataFrame({"x": [1, 2]}), np.random.default_rng(0).permutation(100_000)
    write_json(tmp_path / "value.json", {"x": 1})
    write_parquet(tmp_path / "rows.parquet", frame)
    with no_file_above(10_000):
        with pytest.raises(OSError, match="File too large"):
            write_json(tmp_path / "value.json", {"x": more.tolist()})
        with pytest.raises(OSError, match="File too large"):
            write_parquet(tmp_path / "rows.parquet", pd.DataFrame({"x": more}))
    assert json.loads((tmp_path / "value.json").read_text()) == {"x": 1}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "rows.parquet"), frame)
