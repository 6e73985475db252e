"""Damaged, hostile and foreign checkpoints, models and run folders: each is refused by name, or is as good as it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redistill.build import _check_folder, _same_as_before, prepare
from redistill.core.loop import Run
from redistill.core.runs import RunFolder
from redistill.core.state import checkpoints
from redistill.embodied.models import load_model as load_policy
from redistill.errors import UserError
from redistill.evaluation.saved import evaluate_saved
from redistill.generation.models import load_model as load_flow
from redistill.text.weights import checked
from redistill.vision.models import load_model as load_image

from benchmarks.resume_runs import settings_of

VALUES = (
    "null", "true", "-1", "0", "3", "1e999", "NaN", "123456789012345678901234567890", '""', '"x"', '"../../../etc/passwd"', '"\\u0000"',
    '"\\ud800"', "[]", "{}", "[[]]", '{"a": 1}', "[1, null]", '"' + "a" * 5000 + '"', "[" * 3000 + "]" * 3000, "0.5",
)  # fmt: skip
"""JSON that stands where something else is expected."""


@dataclass
class Found:
    """How many inputs were tried, and what came of them."""

    inputs: int = 0
    refused: int = 0
    unchanged: int = 0
    """Damage that a reader cannot mind, or a well-sealed other value."""
    crashes: list[str] = field(default_factory=list)
    """Anything but a refusal in one sentence: what was done, and what came."""
    accepted: list[str] = field(default_factory=list)
    """Damage that was not made good by new seals, and was read all the same."""
    kinds: Counter[str] = field(default_factory=Counter)


# --- damage -------------------------------------------------------------------------------------------------------------
def flip(path: Path, luck: random.Random) -> None:
    """Change one to four bits of a file."""
    data = bytearray(path.read_bytes())
    for _ in range(luck.randint(1, 4)):
        data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
    path.write_bytes(bytes(data))


def truncate(path: Path, luck: random.Random) -> None:
    """Keep the beginning of a file."""
    path.write_bytes(path.read_bytes()[: luck.randrange(path.stat().st_size)])


def lengthen(path: Path, luck: random.Random) -> None:
    """Put bytes after its end."""
    path.write_bytes(path.read_bytes() + luck.randbytes(luck.randint(1, 60)))


def replaced(path: Path, luck: random.Random) -> None:
    """Put something else in its place: nothing, a folder, noise, a loop, a device that never ends."""
    path.unlink()
    kind = luck.randrange(5)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        path.write_bytes(luck.randbytes(200))
    elif kind == 3:
        path.symlink_to(path)
    elif kind == 4:
        path.symlink_to("/dev/zero")


def other_json(path: Path, luck: random.Random) -> None:
    """Put some JSON where something else was: a value, a key, an entry, or the whole."""
    with contextlib.suppress(ValueError, RecursionError):  # damaged before
        path.write_text(_with_other(path.read_text(), luck))


def _with_other(text: str, luck: random.Random) -> str:
    """JSON text with something else in one place."""
    whole = json.loads(text)
    places: list[tuple[Any, Any]] = []
    waiting = [whole]
    while waiting:
        value = waiting.pop()
        for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            waiting.append(value[key])
    if not places or luck.random() < 0.05:
        return luck.choice(VALUES)
    held, key = luck.choice(places)
    kind = luck.randrange(4) if isinstance(held, dict) else 0
    if kind == 1:
        del held[key]
    elif kind == 2:
        held[f"{key}x"] = held.pop(key)
    else:
        held[key] = "@here"
    return json.dumps(whole).replace('"@here"', luck.choice(VALUES))


def other_tensors(path: Path, luck: random.Random) -> None:
    """Rewrite a safetensors file's header: another name, dtype, shape or place of a tensor, or none."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    name = luck.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    kind = luck.randrange(5)
    if kind == 0:
        header[name + "x"] = header.pop(name)
    elif kind == 1:
        entry["dtype"] = luck.choice(["F64", "I32", "F16", "X9", "BOOL"])
    elif kind == 2:
        entry["shape"] = luck.choice([[*entry["shape"], 1], entry["shape"][::-1], [-1], [2**62, 4], []])
    elif kind == 3:
        entry["data_offsets"] = [luck.randrange(2**40), luck.randrange(2**40)]
    else:
        del header[name]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def reseal(folder: Path) -> None:
    """Make a manifest agree with its files again, as somebody would who writes a checkpoint to order."""
    path = folder / "manifest.json"
    if not path.is_file():
        return
    with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError, KeyError, OSError):
        manifest = json.loads(path.read_text())
        for name in manifest["files"]:
            if name != "manifest.json" and (folder / name).is_file() and len(name) < 99 and ".." not in name:
                manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        manifest["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(manifest))


def damage(folder: Path, luck: random.Random, sealed: bool) -> str:
    """Damage one file of a folder (and seal it anew); what was done."""
    path = luck.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    kinds: list[Callable[[Path, random.Random], None]] = [flip, truncate, lengthen, replaced]
    kinds += (
        [other_json] * 3 if path.suffix == ".json" else [other_tensors] * 3 if path.suffix == ".safetensors" else []
    )
    kind = luck.choice(kinds)
    kind(path, luck)
    if sealed:
        reseal(folder)
    return f"{kind.__name__} of {path.name}{', sealed anew' if sealed else ''}"


# --- readers ------------------------------------------------------------------------------------------------------------
def attempt(found: Found, what: str, read: Callable[[], bool]) -> None:
    """Read something damaged: refused (UserError, or False), or read."""
    found.inputs += 1
    found.kinds[what.split(" of ")[0]] += 1
    try:
        fine = read()
    except UserError as error:
        found.refused += 1
        if "\n" in str(error).strip():
            found.crashes.append(f"{what}: a refusal of several lines: {str(error)[:200]!r}")
    except Exception as error:
        found.crashes.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
    else:
        found.unchanged += fine
        found.refused += not fine
        if fine and "checkpoint" in what and "sealed" not in what and "no change" not in what:
            found.accepted.append(what)


def of_checkpoints(found: Found, folder: Path, count: int, seed: int) -> None:
    """Damaged newest checkpoints of a run with two: refused with its name, and the one before used."""
    luck = random.Random(f"checkpoints {seed}")
    run = small_run("crd", folder / "run")
    try:
        run.go(False)
        good = {
            path: path.read_bytes() for path in checkpoints(run.folder.checkpoints)[-1].rglob("*") if path.is_file()
        }
        newest = checkpoints(run.folder.checkpoints)[-1]
        logs = {path: path.read_bytes() for path in run.folder.path.glob("*.jsonl")}
        for _ in range(count):
            told = f"checkpoint: {damage(newest, luck, luck.random() < 0.5)}"
            if all(_same(path, data) for path, data in good.items()):
                told += ", no change"
            attempt(found, told, lambda: _loads_newest(run, newest))
            shutil.rmtree(newest)
            newest.mkdir()
            for path, data in [*good.items(), *logs.items()]:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
    finally:
        run.close()


def _same(path: Path, data: bytes) -> bool:
    """Whether a file says what it said (JSON may be written in other ways)."""
    if not path.is_file():
        return False
    if path.suffix != ".json":
        return path.read_bytes() == data
    with contextlib.suppress(ValueError, RecursionError):
        return bool(json.loads(path.read_bytes()) == json.loads(data))
    return False


def _loads_newest(run: Run, newest: Path) -> bool:
    used, refused = run.state.load_newest(run.folder.checkpoints)
    if used is None:
        raise AssertionError(f"no checkpoint was used: {refused}")
    if used != newest and not (len(refused) == 1 and str(newest) in refused[0]):
        raise AssertionError(f"the newest was not named: {refused}")
    return used == newest


def of_models(found: Found, folder: Path, count: int, seed: int) -> None:
    """Damaged model folders of every domain: refused, or read."""
    luck = random.Random(f"models {seed}")
    readers: dict[str, Callable[[str], Any]] = {
        "crd": load_flow,
        "ce": lambda path: load_image(path, side=8, classes=10),
        "ppo": lambda path: load_policy(path, observations=39, actions=4),
        "sft": lambda path: checked(Path(path)),
    }
    for name, read in readers.items():
        run = small_run(name, folder / name)
        try:
            run.go(False)
        finally:
            run.close()
        whole, broken = folder / name / "model", folder / f"{name}-broken"
        for _ in range(count // len(readers)):
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(whole, broken)
            told = f"model: {damage(broken, luck, False)}"
            attempt(found, told, lambda: read(str(broken)) is not None)  # noqa: B023


def of_folders(found: Found, folder: Path, count: int, seed: int) -> None:
    """Run folders whose small files are damaged: refused, or gone on with."""
    luck = random.Random(f"folders {seed}")
    run = small_run("crd", folder / "small")
    run.close()
    config, facts = (json.loads((folder / "small" / name).read_text()) for name in ("config.json", "versions.json"))
    for _ in range(count):
        name = luck.choice(["config.json", "versions.json"])
        content = config if name == "config.json" else facts
        path = folder / "small" / name
        path.write_text(json.dumps(content))
        kind = luck.choice([flip, truncate, lengthen, other_json, other_json])
        kind(path, luck)
        lock = RunFolder(folder / "small")
        try:
            attempt(found, f"{name}: {kind.__name__}", lambda: _reads(lock, folder / "small", config, facts))  # noqa: B023
        finally:
            lock.close()
        path.write_text(json.dumps(content))


def _reads(lock: RunFolder, path: Path, config: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    with contextlib.suppress(UserError):  # the run has no checkpoint, which is told
        evaluate_saved(str(path), None, 0, None, {})
    _check_folder(lock, config, True)
    _same_as_before(lock, dict(facts), lambda event, told: None)
    return True


def small_run(name: str, folder: Path) -> Run:
    """A run of two steps with a checkpoint after each."""
    slug, given = settings_of(name)
    given |= {"steps": 2, "save_every": 1, "eval_every": 0, "eval_prompts": 20}
    return prepare(slug, given, out=folder, report=lambda event, told: None)


def fuzz(inputs: int, seed: int = 0) -> Found:
    """Try about so many damaged inputs: half of them checkpoints, a quarter models, a quarter run folders."""
    found = Found()
    with tempfile.TemporaryDirectory(prefix="redistill-fuzz-") as folder:
        for kind, share in ((of_checkpoints, 0.5), (of_models, 0.25), (of_folders, 0.25)):
            place = Path(folder) / kind.__name__
            os.mkdir(place)
            kind(found, place, int(inputs * share), seed)
    return found
