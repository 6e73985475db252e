"""A few kills of the campaign of `make trust`; a long run in small; folders and locks of processes that died."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from benchmarks.resume_hygiene import hygiene
from benchmarks.trust_resume import MOMENTS, campaign
from redistill.core.runs import RunFolder
from redistill.errors import UserError


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_bit_for_bit(moment: str, tmp_path: Path) -> None:
    found = campaign(2, tmp_path, seed=4, among=["crd", "ps-kd"], moments=(moment,))
    assert found.wrong == []
    assert found.resumed_exact == found.kills == found.moments[moment] >= 2


def test_a_long_run_in_small() -> None:
    """100 of the 2,000 steps of `make trust`."""
    found = hygiene(100)
    assert found["handles_end"] == found["handles_start"]
    assert found["threads_end"] == found["threads_start"]
    assert found["memory_end_mb"] < 1.1 * found["memory_start_mb"]
    assert found["log_bytes_per_step"] < 2500
    assert found["checkpoints_left"] <= 3, "two newest, one best"


def holder(folder: Path) -> int:
    """A process that has a run folder, once this returns."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        lock = RunFolder(folder)
        os.write(write, b"x")
        time.sleep(60)
        lock.close()
        os._exit(0)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    return child


def test_a_folder_has_one_writer_and_a_dead_one_has_none(tmp_path: Path) -> None:
    child = holder(tmp_path / "run")
    try:
        with pytest.raises(UserError, match=rf"is being written by another process \(pid {child} on "):
            RunFolder(tmp_path / "run")
        (tmp_path / "link").symlink_to(tmp_path / "run")
        with pytest.raises(UserError, match="is being written by another process"):
            RunFolder(tmp_path / "link")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (tmp_path / "run" / ".lock").read_text().startswith(f"pid {child} on "), "a dead process's lock is there"
    taken = RunFolder(tmp_path / "run")
    assert (tmp_path / "run" / ".lock").read_text().startswith(f"pid {os.getpid()} on ")
    taken.close()


def test_a_folder_that_is_removed_while_it_is_taken_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a folder that is no more would be seen by nobody."""
    import fcntl

    import redistill.core.runs as runs

    first = RunFolder(tmp_path / "run")
    real, calls = fcntl.flock, [0]

    def flock(file: object, how: int) -> None:
        calls[0] += 1
        if calls[0] == 1:
            first.close()  # its owner leaves, and the folder with it, between the opening and the locking
        real(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(runs.fcntl, "flock", flock)
    second = RunFolder(tmp_path / "run")
    assert calls[0] == 2
    with pytest.raises(UserError, match="is being written by another process"):
        RunFolder(tmp_path / "run")
    second.close()
