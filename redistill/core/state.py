"""State (law 9): everything that evolves registers here; a checkpoint is safetensors and JSON, written atomically.

A checkpoint is a folder `step-00000010` with one `<part>.safetensors` for each part that has tensors and a
`manifest.json` with the parts' facts and the SHA-256 of every file. The folder gets its name by rename, after everything in
it has reached the disk, so a folder with that name is whole; hashes catch what happens to it afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from redistill.errors import UserError

FORMAT = 2
_NAME = re.compile(r"^step-(\d{8})$")


@dataclass(frozen=True)
class Piece:
    """The state of one part: tensors by name and facts (JSON values)."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Stateful(Protocol):
    """Anything that evolves during a run."""

    def state(self) -> Piece:
        """A complete description of the part now."""
        ...

    def restore(self, piece: Piece) -> None:
        """Become what `state` described."""
        ...


class State:
    """The registry of everything that evolves."""

    def __init__(self) -> None:
        self.parts: dict[str, Stateful] = {}

    def register(self, name: str, part: Stateful) -> None:
        """Add a part under a unique name."""
        if name in self.parts:
            raise ValueError(f"two parts of the state are called {name!r}")
        self.parts[name] = part

    def save(self, root: Path, step: int, keep_last: int) -> Path:
        """Write checkpoint `step` under `root` atomically and drop all but the newest `keep_last`."""
        final = root / f"step-{step:08d}"
        draft = root / f".draft-{step:08d}-{os.getpid()}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            for left in root.glob(".draft-*"):  # of a process that was killed: only one may write here
                shutil.rmtree(left)
            draft.mkdir()
            manifest: dict[str, Any] = {"format": FORMAT, "step": step, "parts": {}, "files": {}}
            for name, part in self.parts.items():
                piece = part.state()
                manifest["parts"][name] = dict(piece.facts)
                if piece.tensors:
                    path = draft / f"{name}.safetensors"
                    save_file({key: value.contiguous().clone() for key, value in piece.tensors.items()}, path)
                    manifest["files"][path.name] = digest(path)
            manifest["sha256"] = _seal(manifest)
            (draft / "manifest.json").write_text(json.dumps(manifest, indent=1))
            for path in draft.iterdir():
                _sync(path)
            _sync(draft)
            if final.exists():
                shutil.rmtree(final)
            os.rename(draft, final)
            _sync(root)
        except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in its own error
            shutil.rmtree(draft, ignore_errors=True)
            why = getattr(error, "strerror", None) or error
            kept = checkpoints(root)
            before = f"the one before it is intact: {kept[-1]}" if kept else "there is none before it"
            raise UserError(f"checkpoint {final} could not be written ({why}); {before}") from None
        for old in checkpoints(root)[:-keep_last]:
            shutil.rmtree(old)
        return final

    def load(self, folder: Path) -> int:
        """Restore every part from a checkpoint that `verify` accepted; returns its step."""
        manifest = verify(folder)
        missing, foreign = set(self.parts) - set(manifest["parts"]), set(manifest["parts"]) - set(self.parts)
        if missing or foreign:
            raise UserError(
                f"checkpoint {folder} is of another run: it lacks {sorted(missing) or 'nothing'} and has "
                f"{sorted(foreign) or 'nothing'} more"
            )
        for name, part in self.parts.items():
            path = folder / f"{name}.safetensors"
            tensors = load_file(path) if path.name in manifest["files"] else {}
            part.restore(Piece(tensors, manifest["parts"][name]))
        return int(manifest["step"])


def checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders under `root`, oldest first."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if _NAME.match(path.name))


def newest_good(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and one sentence for each newer one that had to be refused."""
    refused = []
    for folder in reversed(checkpoints(root)):
        try:
            verify(folder)
        except UserError as error:
            refused.append(str(error))
            continue
        return folder, refused
    return None, refused


def verify(folder: Path) -> dict[str, Any]:
    """Read and check a checkpoint's manifest and hashes; raise a UserError that names the file that is wrong."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {folder}: manifest.json cannot be read ({error})") from None
    if not isinstance(manifest, dict) or not {"format", "step", "parts", "files"} <= set(manifest):
        raise UserError(f"checkpoint {folder}: manifest.json is not one of ours")
    if manifest["format"] != FORMAT:
        raise UserError(f"checkpoint {folder} has format {manifest['format']}, this version reads {FORMAT}")
    if manifest.get("sha256") != _seal(manifest):
        raise UserError(f"checkpoint {folder}: manifest.json was changed")
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file() or digest(file) != expected:
            raise UserError(f"checkpoint {folder}: {name} is missing, truncated or changed")
    return manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of everything in a manifest but the seal itself: its counters matter as much as the tensors do."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
