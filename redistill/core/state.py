"""State (law 9): everything that evolves registers here; a checkpoint is safetensors and JSON, written atomically.

A checkpoint is a folder `step-00000010` with one `<part>.safetensors` for each part that has tensors and a
`manifest.json` with the parts' facts and the SHA-256 of every file. The folder gets its name by rename, after everything in
it has reached the disk, so a folder with that name is whole; hashes catch what happens to it afterwards. A student's weights
are in a file of their own, under the names that other libraries know, beside what these want to read with it (config.json,
tokenizer): the folder is a model's folder too, and no weight is in it twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from redistill.core.files import read_object, read_tensors
from redistill.errors import OutsideFault, UserError

FORMAT = 3
_NAME = re.compile(r"^step-(\d{8})$")


@dataclass(frozen=True)
class Piece:
    """The state of one part: tensors by name and facts (JSON values)."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    apart: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Tensors in files of their own, by the file's name: those that other libraries read under that name."""


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

    def save(
        self,
        root: Path,
        step: int,
        keep_last: int,
        *,
        keep: Collection[int] = (),
        beside: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write checkpoint `step` under `root` atomically and drop all but the newest `keep_last` and those of the steps
        `keep`. `beside` writes into the folder what makes it readable by others."""
        final = root / f"step-{step:08d}"
        draft = root / f".draft-{step:08d}-{os.getpid()}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            for left in root.glob(".draft-*"):  # of a process that was killed: only one may write here
                shutil.rmtree(left)
            draft.mkdir()
            self._write(draft, step, beside)
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
            if int(old.name.removeprefix("step-")) not in keep:
                shutil.rmtree(old)
        return final

    def _write(self, draft: Path, step: int, beside: Callable[[Path], None] | None) -> None:
        """All files of a checkpoint, on the disk when this returns."""
        manifest: dict[str, Any] = {"format": FORMAT, "step": step, "parts": {}, "apart": {}, "files": {}}
        if beside is not None:
            beside(draft)
        for name, part in self.parts.items():
            piece = part.state()
            manifest["parts"][name] = dict(piece.facts)
            if piece.apart:
                manifest["apart"][name] = sorted(piece.apart)
            for file, tensors in {
                **piece.apart,
                **({f"{name}.safetensors": piece.tensors} if piece.tensors else {}),
            }.items():
                copies = {key: value.contiguous().clone() for key, value in tensors.items()}
                save_file(copies, draft / file, {"format": "pt"})
        for path in sorted(path for path in draft.rglob("*") if path.is_file()):
            manifest["files"][path.relative_to(draft).as_posix()] = digest(path)
        manifest["sha256"] = _seal(manifest)
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in draft.rglob("*"):
            _sync(path)
        _sync(draft)

    def load(self, folder: Path, agree: Callable[[Mapping[str, Any]], None] | None = None) -> int:
        """Restore every part from a checkpoint; returns its step. Raises UserError, naming folder and part, for one that is
        damaged or does not fit. Parts that change files (`on_disk`) come last: when all others fit, `agree` sees the facts of all
        and may refuse as well, and until then nothing outside of the process is changed."""
        manifest = verify(folder)
        missing, foreign = set(self.parts) - set(manifest["parts"]), set(manifest["parts"]) - set(self.parts)
        if missing or foreign:
            raise UserError(
                f"checkpoint {folder} is of another run: it lacks {sorted(missing) or 'nothing'} and has "
                f"{sorted(foreign) or 'nothing'} more"
            )
        pieces = {name: read_piece(folder, manifest, name) for name in self.parts}
        for name, part in self.parts.items():
            unlike = _unlike(part.state().facts, pieces[name].facts)
            if unlike:
                raise UserError(f"checkpoint {folder} does not fit this run: {name} {unlike}")
        files = [name for name, part in self.parts.items() if getattr(part, "on_disk", False)]
        self._restore(folder, {name: piece for name, piece in pieces.items() if name not in files})
        if agree is not None:
            agree(manifest["parts"])
        self._restore(folder, {name: pieces[name] for name in files})
        return int(manifest["step"])

    def _restore(self, folder: Path, pieces: Mapping[str, Piece]) -> None:
        for name, piece in pieces.items():
            try:
                self.parts[name].restore(piece)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
                said = " ".join(str(error).split())[:200]
                raise UserError(f"checkpoint {folder} does not fit this run: {name}: {said}") from None

    def load_newest(
        self, root: Path, agree: Callable[[Mapping[str, Any]], None] | None = None
    ) -> tuple[Path | None, list[str]]:
        """Restore every part from the newest checkpoint under `root` that is whole and fits; that checkpoint (None when there
        is none), and one sentence for each newer one that had to be refused. What `agree` refuses is not tried further."""
        refused: list[str] = []
        disagreed: list[UserError] = []

        def ask(parts: Mapping[str, Any]) -> None:
            try:
                if agree is not None:
                    agree(parts)
            except UserError as error:
                disagreed.append(error)
                raise

        for folder in reversed(checkpoints(root)):
            try:
                self.load(folder, ask)
            except OutsideFault:  # not the checkpoint's
                raise
            except UserError as error:
                if disagreed:
                    raise
                refused.append(str(error))
                continue
            return folder, refused
        return None, refused


def read_piece(folder: Path, manifest: Mapping[str, Any], name: str) -> Piece:
    """The piece of one part, from a checkpoint whose manifest `verify` returned."""

    def tensors(file: str) -> dict[str, Tensor]:
        try:
            return read_tensors(folder / file)
        except ValueError as error:
            raise UserError(
                f"checkpoint {folder}: {file} is not a safetensors file that can be read ({error})"
            ) from None

    own = f"{name}.safetensors"
    apart = {file: tensors(file) for file in manifest["apart"].get(name, [])}
    return Piece(tensors(own) if own in manifest["files"] else {}, manifest["parts"][name], apart)


def fill(tensors: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy `given` into `tensors`, in place. ValueError unless both have the same names, shapes and dtypes: a copy would
    silently stretch and cast, and what is missing would silently stay as it was."""
    if tensors.keys() != given.keys():
        name = sorted(tensors.keys() ^ given.keys())[0]
        raise ValueError(f"{name} is {'missing' if name in tensors else 'unknown'}")
    for name, tensor in tensors.items():
        other = given[name]
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            kinds = [f"{tuple(one.shape)} {one.dtype}" for one in (other, tensor)]
            raise ValueError(f"{name} is {kinds[0]}, this run has {kinds[1]}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(given[name])


def _unlike(own: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """In what the facts of a checkpoint are not of the kind that a part has; None when they are."""
    if own.keys() != given.keys():
        name = sorted(own.keys() ^ given.keys())[0]
        return f"{'lacks' if name in own else 'has an unknown'} {name!r}"
    for name, value in given.items():
        kinds = [_kind(each) for each in (own[name], value)]
        if None not in kinds and kinds[0] != kinds[1]:
            return f"has {name}={str(value)[:40]!r}, which is no {kinds[0]}"
    return None


def _kind(value: Any) -> str | None:
    """A JSON value's type in words; None for null, which may stand for any."""
    kinds = (
        (bool, "truth value"),
        ((int, float), "number"),
        (str, "text"),
        ((list, tuple), "list"),
        (Mapping, "table"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), None)


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
        manifest = read_object(path)
    except ValueError as error:
        raise UserError(f"checkpoint {folder}: manifest.json cannot be read ({error})") from None
    if not {"format", "step", "parts", "files"} <= set(manifest):
        raise UserError(f"checkpoint {folder}: manifest.json is not one of ours")
    if manifest["format"] != FORMAT:
        raise UserError(f"checkpoint {folder} has format {manifest['format']}, this version reads {FORMAT}")
    if not _well_formed(manifest):
        raise UserError(f"checkpoint {folder}: manifest.json is not one of ours")
    if manifest.get("sha256") != _seal(manifest):
        raise UserError(f"checkpoint {folder}: manifest.json was changed")
    for name, expected in manifest["files"].items():
        try:
            whole = (folder / name).is_file() and digest(folder / name) == expected
        except (OSError, ValueError):
            whole = False
        if not whole:
            raise UserError(f"checkpoint {folder}: {name} is missing, truncated or changed")
    return manifest


def _well_formed(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest has the types that it must have, and names no file outside of its folder."""
    step, parts, apart, files = (manifest.get(key) for key in ("step", "parts", "apart", "files"))
    if type(step) is not int or not (isinstance(parts, dict) and isinstance(apart, dict) and isinstance(files, dict)):
        return False
    inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in files)
    lists = all(isinstance(names, list) and all(name in list(files) for name in names) for names in apart.values())
    return inside and lists and all(isinstance(facts, dict) for facts in parts.values())


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
