"""Checkpoints: atomic, sealed, refused by name when damaged; full disks; logs that are cut back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from redistill.core import state as states
from redistill.core.runs import Log, RunFolder
from redistill.core.state import Piece, State, checkpoints, newest_good, verify
from redistill.errors import UserError


class Part:
    """A part with a tensor and a number."""

    def __init__(self, value: float = 0.0) -> None:
        self.tensor, self.number = torch.full((300,), value, dtype=torch.float64), value

    def state(self) -> Piece:
        return Piece({"tensor": self.tensor}, {"number": self.number})

    def restore(self, piece: Piece) -> None:
        self.tensor, self.number = piece.tensors["tensor"], piece.facts["number"]


def registry(part: Part) -> State:
    state = State()
    state.register("part", part)
    return state


def saved(root: Path, steps: tuple[int, ...] = (1, 2), keep: int = 5) -> State:
    part = Part()
    state = registry(part)
    for step in steps:
        part.tensor, part.number = torch.full((300,), float(step), dtype=torch.float64), float(step)
        state.save(root, step, keep)
    return state


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    saved(tmp_path)
    part = Part()
    assert registry(part).load(tmp_path / "step-00000002") == 2
    assert part.number == 2.0
    assert torch.equal(part.tensor, torch.full((300,), 2.0, dtype=torch.float64))


def test_the_newest_are_kept_and_two_parts_cannot_share_a_name(tmp_path: Path) -> None:
    state = saved(tmp_path, (1, 2, 3, 4), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]
    with pytest.raises(ValueError, match="two parts"):
        state.register("part", Part())


def truncate(folder: Path) -> str:
    path = folder / "part.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "part.safetensors"


def flip(folder: Path) -> str:
    path = folder / "part.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    return "part.safetensors"


def remove(folder: Path) -> str:
    (folder / "part.safetensors").unlink()
    return "part.safetensors"


def half_manifest(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:40])
    return "manifest.json cannot be read"


def another_number(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"number": 2.0', '"number": 3.0'))
    return "manifest.json was changed"


def no_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json cannot be read"


def not_ours(folder: Path) -> str:
    (folder / "manifest.json").write_text("[]")
    return "manifest.json is not a JSON object"


def from_the_future(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    return "has format 99"


DAMAGES = [truncate, flip, remove, half_manifest, another_number, no_manifest, not_ours, from_the_future]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(damage: Any, tmp_path: Path) -> None:
    state = saved(tmp_path)
    newest = tmp_path / "step-00000002"
    words = damage(newest)
    with pytest.raises(UserError) as caught:
        state.load(newest)
    assert str(newest) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    folder, refused = newest_good(tmp_path)
    assert folder == tmp_path / "step-00000001"
    assert refused == [str(caught.value)]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_good(tmp_path / "nothing") == (None, [])


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    other = registry(Part())
    other.register("more", Part())
    with pytest.raises(UserError, match="is of another run: it lacks \\['more'\\]"):
        other.load(tmp_path / "step-00000002")


class Killed(BaseException):
    """Stands for SIGKILL: nothing may clean up after it."""


@pytest.mark.parametrize("at", range(12))
def test_a_kill_at_any_moment_of_a_save_leaves_a_good_checkpoint(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the disk is a moment; so is the one after the last."""
    state = saved(tmp_path, (1, 2), keep=2)
    left = [at]

    def mortal(call: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise Killed
            return call(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(states, "save_file", mortal(states.save_file))
        patched.setattr(states, "_sync", mortal(states._sync))
        patched.setattr(states.os, "rename", mortal(os.rename))
        patched.setattr(states.shutil, "rmtree", mortal(shutil.rmtree))
        patched.setattr(Path, "mkdir", mortal(Path.mkdir))
        patched.setattr(Path, "write_text", mortal(Path.write_text))
        try:
            state.save(tmp_path, 3, 2)
            killed = False
        except Killed:
            killed = True
    assert killed or at >= 8
    folder, refused = newest_good(tmp_path)
    assert folder is not None
    assert refused == []
    assert registry(Part()).load(folder) in (2, 3)
    state.save(tmp_path, 4, 2)
    assert list(tmp_path.glob(".draft-*")) == [], "what a killed process left is removed"
    assert verify(tmp_path / "step-00000004")["step"] == 4


@pytest.mark.parametrize("call", ["save_file", "_sync", "write_text", "rename"])
def test_a_full_disk_leaves_the_checkpoint_before_and_one_sentence(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = saved(tmp_path, (1,))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr({"write_text": Path, "rename": os}.get(call, states), call, full)
        with pytest.raises(UserError) as caught:
            state.save(tmp_path, 2, 1)
    assert "No space left on device" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert verify(tmp_path / "step-00000001")["step"] == 1


# --- logs and folders -----------------------------------------------------------------------------------------------
def test_a_log_is_cut_back_to_its_checkpoint(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.add({"step": 1})
    piece = log.state()
    log.add({"step": 2, "text": "é\n"})
    log.close()
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "te')  # a kill in the midst of a line
    log = Log(tmp_path / "log.jsonl")
    log.restore(piece)
    log.add({"step": 4})
    log.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 4]


def test_a_log_shorter_than_its_checkpoint_is_refused(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match="is shorter than its checkpoint says"):
        log.restore(Piece(facts={"bytes": 10}))
    log.close()


def test_a_log_on_a_full_disk_is_one_sentence_even_when_closed() -> None:
    log = Log(Path("/dev/full"))
    with pytest.raises(UserError, match="No space left on device"):
        log.add({"step": 1})
    log.close()


def test_two_writers_of_a_folder_are_refused(tmp_path: Path) -> None:
    one = RunFolder(tmp_path)
    with pytest.raises(UserError, match="is being written by another process"):
        RunFolder(tmp_path)
    one.close()
    RunFolder(tmp_path).close()


def test_small_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.write("result.json", {"a": 1})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(UserError, match=r"result\.json could not be written"):
            folder.write("result.json", {"a": 2})
    assert folder.read("result.json") == {"a": 1}
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json cannot be read"):
        folder.read("result.json")
    folder.close()
