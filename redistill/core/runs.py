"""Run folders: one folder holds everything about a run, and only one process may write it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from redistill.core.state import Piece
from redistill.errors import UserError

PACKAGES = ("redistill", "torch", "transformers", "peft", "safetensors", "numpy", "reasoning-gym", "math-verify")
_SMALLEST = 1_000_000
"""Bytes that any run needs for its logs."""


class RunFolder:
    """runs/<name>: config.json, versions.json, metrics.jsonl, samples.jsonl, credit.jsonl, views.txt, checkpoints/, model/, result.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path)
        except OSError as error:
            raise UserError(
                f"run folder {path} cannot be written ({error.strerror or error}); choose another --out"
            ) from None

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    def write(self, name: str, content: Any) -> None:
        """Write a small file atomically: JSON, or text when `content` is a string."""
        text = content if isinstance(content, str) else json.dumps(finite(content), indent=1, ensure_ascii=False)
        draft = self.path / f".{name}.draft"
        try:
            draft.write_text(text + "\n")
            os.replace(draft, self.path / name)
        except OSError as error:
            raise UserError(f"{self.path / name} could not be written ({error.strerror or error})") from None

    def read(self, name: str) -> Any:
        """Read a JSON file of the folder; None when it is not there."""
        path = self.path / name
        try:
            return json.loads(path.read_text()) if path.is_file() else None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({error})") from None

    def check_room(self, checkpoint: int, kept: int, model: int) -> str | None:
        """Compare the free disk with what a run needs, in bytes: `checkpoint` for one of `kept`, `model` for the result.
        A UserError when not even one checkpoint fits, a sentence to warn with when not all of them do, else None."""
        free = shutil.disk_usage(self.path).free
        needed = (kept + 1) * checkpoint + model  # a new one is written before the oldest goes
        if free < max(checkpoint, _SMALLEST):
            raise UserError(
                f"the disk of run folder {self.path} has {_size(free)} free, and one checkpoint needs about "
                f"{_size(max(checkpoint, _SMALLEST))}: make room or choose another --out"
            )
        if free < needed:
            return (
                f"the disk of run folder {self.path} has {_size(free)} free, and the run needs about {_size(needed)} "
                f"({kept} checkpoints of {_size(checkpoint)}, one under way, the model)"
            )
        return None

    def close(self) -> None:
        """Let another process write the folder. A folder made here that nothing was written to goes again."""
        if self._made and self.path.is_dir() and [path.name for path in self.path.iterdir()] == [".lock"]:
            shutil.rmtree(self.path)
        self._lock.close()


def finite(value: Any) -> Any:
    """JSON values with null for the numbers that JSON does not have (NaN, infinities), so that any reader can read them."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _locked(path: Path) -> IO[bytes]:
    """Take a folder's lock, which the kernel lets go of when its process ends, however it does; what a dead process wrote in it
    means nothing. UserError while another process has it."""
    while True:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("a+b", buffering=0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read(100).decode(errors="replace").strip()
            lock.close()
            who = f"another process ({holder})" if holder else "another process"
            raise UserError(f"run folder {path} is being written by {who}; choose another --out") from None
        if _same_file(path / ".lock", lock):
            with contextlib.suppress(OSError):  # who it is helps to read, and needs room on the disk
                lock.truncate(0)
                lock.write(f"pid {os.getpid()} on {platform.node()}\n".encode())
            return lock
        lock.close()  # its folder was removed between opening and locking: a lock that nobody else would see


def _same_file(path: Path, opened: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(opened.fileno()))
    except FileNotFoundError:
        return False


class Log:
    """An append-only JSONL file whose length is part of the state: on resume, lines after the checkpoint are cut off."""

    on_disk = True

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.path, self.limit = path, limit
        """`limit`: bytes after which no more is added (None: no limit)."""
        # Unbuffered: what could not be written must not be tried again when the file is closed.
        self.file = path.open("ab", buffering=0)

    def add(self, record: Mapping[str, Any]) -> bool:
        """Append one record; False where the limit leaves no room for it. A record that the disk takes only in part is an error;
        the part is cut off by the next resume."""
        line = json.dumps(finite(record), ensure_ascii=False).encode() + b"\n"
        if self.limit is not None and self.file.tell() + len(line) > self.limit:
            return False
        try:
            if self.file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserError(
                f"{self.path} could not be written ({error.strerror or error}); the run stops here"
            ) from None
        return True

    @property
    def size(self) -> int:
        """The file's length in bytes."""
        return self.path.stat().st_size

    def state(self) -> Piece:
        """The file's length in bytes, all of them on the disk: a checkpoint must not outlive what it counts."""
        os.fsync(self.file.fileno())
        return Piece(facts={"bytes": self.size})

    def restore(self, piece: Piece) -> None:
        """Cut the file back to what it was."""
        size = self.size
        if piece.facts["bytes"] < 0:
            raise ValueError(f"{piece.facts['bytes']} bytes are no length")
        if size < piece.facts["bytes"]:
            raise UserError(f"{self.path} is shorter than its checkpoint says ({size} < {piece.facts['bytes']} bytes)")
        self.file.truncate(piece.facts["bytes"])
        self.file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that a number may depend on."""
    found = {"python": sys.version.split()[0], "platform": platform.platform(), "cpus": str(os.cpu_count())}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def default_path(method: str, task: str, seed: int) -> Path:
    """runs/<method>-<task>-s<seed>-<time>, a name that says what it is."""
    short = "".join(c if c.isalnum() else "_" for c in task.split(":")[0].rsplit("/", 1)[-1])
    return Path("runs") / f"{method}-{short}-s{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
