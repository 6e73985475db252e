"""Folders that appear whole or not at all, and small readers that refuse what is not what it should be."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from redistill.errors import UserError


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


def put_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that then takes the place of the model folder `folder` in one step; what a killed process left
    of an earlier attempt goes. UserError where the disk refuses."""
    try:
        for left in folder.parent.glob(f".{folder.name}.*-*"):  # a run has one writer
            shutil.rmtree(left)
        with replacing(folder) as temporary:
            write(temporary)
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in its own error
        raise UserError(f"model folder {folder} could not be written ({error}); the checkpoints are intact") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of an ordinary file. ValueError for anything else."""
    if not path.is_file():  # a device would be read for ever
        raise ValueError(f"{path.name} is missing or not a file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError) as error:
        raise ValueError(f"{path.name}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. ValueError for anything else."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing or not a file")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path.name}: {error}") from None
