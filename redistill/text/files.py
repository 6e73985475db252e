"""Hashes of files on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

_hashed: dict[tuple[str, int, int], str] = {}


def file_hash(file: Path) -> str:
    """SHA-256 of a file in hex; remembered for as long as its size and modification time stay the same."""
    stat = file.stat()
    key = (str(file.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashed:
        with file.open("rb") as stream:
            _hashed[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashed[key]
