"""What has reached W&B's files is read back, however they were cut."""

from __future__ import annotations

import pytest
import wandb

from lens.runs.wandb_history import count_lines_in_wandb, read_records, remember_run_id

LINES = 40


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[int, bytes]:
    """Offline files of runs that logged lines from some number on: short, and over several blocks of 32 KiB."""
    found = {}
    for first, text in ((0, "x"), (LINES, "x" * 3000)):
        folder = tmp_path_factory.mktemp("wandb")
        settings = wandb.Settings(silent=True, console="off")
        run = wandb.init(mode="offline", dir=folder, id="id", resume="allow", settings=settings)
        for step in range(first, first + LINES):
            run.log({"text": f"{step}{text}"}, step=step, commit=True)
        run.finish()
        wandb.teardown()  # its service has written everything
        (file,) = folder.glob("wandb/offline-run-*-id/run-id.wandb")
        found[first] = file.read_bytes()
    return found


def histories(data: bytes) -> list[int]:
    return [record.history.step.num for record in read_records(data) if record.HasField("history")]


def test_every_line_is_found(files):
    for first, data in files.items():
        assert histories(data) == list(range(first, first + LINES))
    assert len(files[LINES]) > 2 * 32768


def test_a_cut_file_holds_the_first_lines(files):
    for first, data in files.items():
        for length in [0, 5, 7, 8, 13, 14, 32767, 32768, 32769, 32775, *range(100, len(data), 997)]:
            found = histories(data[:length])
            assert found == list(range(first, first + len(found)))


def test_lines_are_counted_over_all_starts_of_one_run(files, tmp_path):
    assert count_lines_in_wandb(tmp_path, "id") == 0
    starts = {"offline-run-1-id": b":W&B\0\0\0", "offline-run-2-id": files[0], "run-3-id": files[LINES][:60000]}
    for name, data in starts.items():
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / "run-id.wandb").write_bytes(data)
    assert LINES < count_lines_in_wandb(tmp_path, "id") < 2 * LINES
    assert count_lines_in_wandb(tmp_path, "other") == 0


def test_a_folder_has_one_id(tmp_path):
    first = remember_run_id(tmp_path)
    assert remember_run_id(tmp_path) == first
    (tmp_path / "other").mkdir()
    assert remember_run_id(tmp_path / "other") != first
