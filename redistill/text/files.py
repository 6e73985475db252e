"""Files on disk: hashes, and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from redistill.errors import UserError

_hashed: dict[tuple[str, int, int], str] = {}


def file_hash(file: Path) -> str:
    """SHA-256 of a file in hex; remembered for as long as its size and modification time stay the same."""
    stat = file.stat()
    key = (str(file.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashed:
        with file.open("rb") as stream:
            _hashed[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashed[key]


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `folder` at the end, or vanishes on an error.

    A new folder appears in one step. An old model is moved aside first, so a crash between the two renames leaves it as
    .<name>.old beside. UserError when `folder` is anything but a model's folder or empty.
    """
    folder = folder.absolute()
    if folder.exists() and not (folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))):
        raise UserError(f"{str(folder)!r} exists and is not a model's folder, so it is not replaced; choose another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        yield temporary
        _settle(temporary)
        aside = folder.parent / f".{folder.name}.old"
        shutil.rmtree(aside, ignore_errors=True)
        if folder.exists():
            os.replace(folder, aside)
        os.replace(temporary, folder)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Flush every file to disk; give them the folder's permissions to read (safetensors writes files as 0600)."""
    mode = folder.stat().st_mode & 0o666
    for file in (path for path in folder.rglob("*") if path.is_file()):
        file.chmod(mode)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
