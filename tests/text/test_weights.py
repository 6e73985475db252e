"""Resolving weights: what is whole is used, what is cut short, corrupt or a pickle is refused or made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from redistill.core.files import replacing
from redistill.errors import UserError
from redistill.text import files, weights, wheels
from safetensors.torch import load_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the pocket model that a test may damage."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in weights.POCKET.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_pocket_ships_whole() -> None:
    folder = weights.resolve("pocket")
    assert sum(t.numel() for t in load_file(folder / "model.safetensors").values()) < 400_000
    expected = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert weights.hashes(folder) == {"model.safetensors": expected}


def test_a_folder_by_path(folder: Path) -> None:
    assert weights.resolve(str(folder)) == folder.resolve()


@pytest.mark.parametrize("keep", [0, 7, 100, 5_000, -1])
def test_cut_short(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors' is (cut short|corrupt)"):
        weights.resolve(str(folder))


@pytest.mark.parametrize("damage", ["header", "longer"])
def test_corrupt(folder: Path, damage: str) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:20] + b"\xff" * 20 + data[40:] if damage == "header" else data + b"\0")
    with pytest.raises(UserError, match=r"model\.safetensors' is"):
        weights.resolve(str(folder))


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no model.safetensors"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_missing_file(folder: Path, remove: str, words: str) -> None:
    (folder / remove).unlink()
    with pytest.raises(UserError, match=words):
        weights.resolve(str(folder))


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickle only \(pytorch_model\.bin\)"):
        weights.resolve(str(folder))


def test_config_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(UserError, match=r"config\.json' is corrupt"):
        weights.resolve(str(folder))


def test_a_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors', which is missing"):
        weights.resolve(str(folder))


@pytest.mark.parametrize(
    ("name", "words"),
    [("pockett", "did you mean 'pocket'"), ("smollm2", "did you mean 'smollm2-135m'"), ("./nowhere", "does not exist")],
)
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        weights.resolve(name)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Name or service not known\nmore lines")

    monkeypatch.setattr(weights.huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        UserError, match=r"^model 'someone/model' could not be fetched from the hub: Name or service not known$"
    ):
        weights.resolve("someone/model")


def test_hub_patterns_let_no_pickle_or_code_through() -> None:
    from huggingface_hub.utils import filter_repo_objects

    wanted = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
    ]
    unwanted = ["pytorch_model.bin", "modeling_x.py", "tokenizer.pkl", "tokenizer_x.py", "model.pt", "onnx/model.onnx"]
    kept = filter_repo_objects(wanted + unwanted, allow_patterns=weights.HUB_FILES, ignore_patterns=weights.HUB_IGNORED)
    assert list(kept) == wanted


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with replacing(target) as temporary:
        (temporary / "config.json").write_text("1")
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:
        (temporary / "config.json").write_text(str(2 // 0))
    assert (target / "config.json").read_text() == "1"
    with replacing(target) as temporary:
        (temporary / "config.json").write_text("3")
    assert (target / "config.json").read_text() == "3"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_replacing_spares_what_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a model's folder"), replacing(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").exists()


def test_a_hash_follows_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x"
    for content in (b"one", b"three"):
        file.write_bytes(content)
        assert files.file_hash(file) == sha256(content).hexdigest()


# ---- wheels: a made-up one, so that nothing is fetched ----


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> wheels.Packed:
    """A packed model in two wheels whose "GGUF" is a few bytes; pip and conversion are stand-ins that note calls."""
    monkeypatch.setenv("REDISTILL_CACHE", str(tmp_path / "cache"))
    halves = (b"first half, ", b"second half")
    made: list[wheels.Wheel] = []
    for number, half in enumerate(halves):
        file = tmp_path / f"toy{number}-1-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"toy{number}/part", half)
        made.append(wheels.Wheel(f"toy{number}", "1", sha256(file.read_bytes()).hexdigest(), f"toy{number}/part"))

    def download(wheel: wheels.Wheel, folder: Path, what: str) -> None:
        calls.append(wheel.package)
        source = tmp_path / f"{wheel.package}-1-py3-none-any.whl"
        (folder / source.name).write_bytes(source.read_bytes())

    def convert(packed: wheels.Packed, gguf: Path, folder: Path) -> None:
        calls.append("convert")
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())
        (folder / "config.json").write_text("{}")

    calls.clear()
    monkeypatch.setattr(wheels, "_pip_download", download)
    monkeypatch.setattr(wheels, "_convert", convert)
    return wheels.Packed("toy", None, tuple(made), sha256(b"".join(halves)).hexdigest(), megabytes=1)


calls: list[str] = []
ALL = ["toy0", "toy1", "convert"]


def test_made_once_from_its_parts(packed: wheels.Packed) -> None:
    folder = wheels.ensure(packed)
    assert wheels.ensure(packed) == folder == wheels.cache_root() / "models" / "toy"
    assert calls == ALL
    assert (folder / "model.safetensors").read_bytes() == b"first half, second half"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["config.json"] == {"size": 2, "sha256": sha256(b"{}").hexdigest()}
    assert manifest["source"]["wheels"][0]["package"] == "toy0"


@pytest.mark.parametrize(
    "damage", ["cut", "flip", "remove", "no manifest", "old manifest", "other source", "half a manifest"]
)
def test_damaged_cache_is_made_again(packed: wheels.Packed, damage: str) -> None:
    folder = wheels.ensure(packed)
    file, manifest = folder / "model.safetensors", folder / "manifest.json"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "flip":
        file.write_bytes(b"F" + file.read_bytes()[1:])
        os.utime(file, (1, 1))
    elif damage == "remove":
        file.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "old manifest":
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 0'))
    elif damage == "other source":
        manifest.write_text(manifest.read_text().replace('"split_digits": false', '"split_digits": true'))
    else:
        manifest.write_text(manifest.read_text()[:40])
    wheels.ensure(packed)
    assert calls == ALL * 2
    assert file.read_bytes() == b"first half, second half"


def test_interrupted_conversion_leaves_nothing(packed: wheels.Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = wheels._convert

    def interrupted(packed: wheels.Packed, gguf: Path, folder: Path) -> None:
        whole(packed, gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(wheels, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wheels.ensure(packed)
    assert [p.name for p in (wheels.cache_root() / "models").iterdir()] == [".toy.lock"]
    monkeypatch.setattr(wheels, "_convert", whole)
    wheels.ensure(packed)
    assert calls == [*ALL, "convert"]  # the wheels were whole, so they are not fetched again


def test_half_a_wheel_is_fetched_again(packed: wheels.Packed) -> None:
    folder = wheels._wheel_folder(packed.wheels[0])
    folder.mkdir(parents=True)
    (folder / "toy0-1-py3-none-any.whl").write_bytes(b"PK half")
    wheels.ensure(packed)
    assert calls == ALL


def test_a_wheel_with_another_hash_is_not_used(packed: wheels.Packed, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "toy1-1-py3-none-any.whl", "w") as archive:
        archive.writestr("toy1/part", b"something else")
    with pytest.raises(UserError, match=r"toy1-1-py3-none-any\.whl has sha256"):
        wheels.ensure(packed)
    assert not (wheels.cache_root() / "models" / "toy").exists()


def test_parts_that_do_not_add_up(packed: wheels.Packed) -> None:
    import dataclasses

    with pytest.raises(UserError, match="came out of its wheels with sha256"):
        wheels.ensure(dataclasses.replace(packed, wheels=packed.wheels[::-1]))


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    """Two real processes race for the lock; one converts, the other waits and uses the result."""
    script = f"""
import os, time
from pathlib import Path
os.environ["REDISTILL_CACHE"] = {str(tmp_path)!r}
from redistill.core.files import replacing
from redistill.text import wheels
def make(packed, work, folder):
    with open({str(tmp_path / "log")!r}, "a") as log:
        log.write("made\\n")
    time.sleep(0.5)
    with replacing(folder) as temporary:
        (temporary / "config.json").write_text("{{}}")
        files = {{"config.json": {{"size": 2, "sha256": wheels.file_hash(temporary / "config.json")}}}}
        (temporary / "manifest.json").write_text(wheels.json.dumps(
            {{"format": wheels.FORMAT, "source": wheels.asdict(packed), "files": files}}
        ))
wheels._make = make
print(wheels.ensure(wheels.Packed("toy", None, (), "", 1)))
"""
    both = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {process.communicate(timeout=120)[0].strip() for process in both} == {str(tmp_path / "models" / "toy")}
    assert (tmp_path / "log").read_text() == "made\n"


def test_pip_failure_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match=r"^pip could not fetch no-such-package==1: ERROR: .*no-such-package"):
        wheels._pip_download(wheels.Wheel("no-such-package", "1", "", ""), tmp_path, "a test")


def cached(name: str) -> Path:
    folder = wheels.cache_root() / "models" / name
    if not wheels.intact(folder, wheels.PACKED[name]):
        pytest.skip(f"{name} is not in the cache, and tests do not fetch")
    return folder


def test_smollm2_splits_digits_and_ends_with_im_end() -> None:
    """As in the model's own repository: digits one by one before anything else, so a blank line before stays whole."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cached("smollm2-135m"))
    assert tokenizer.tokenize("1.\n\n2") == ["1", ".", "ĊĊ", "2"]
    assert tokenizer.tokenize("12  34") == ["1", "2", "ĠĠ", "3", "4"]
    assert tokenizer.eos_token == "<|im_end|>"
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.decode(ids).endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_smollm2_answers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = cached("smollm2-135m")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False, return_tensors="pt")
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    assert tokenizer.decode(out[0, ids.shape[1] :]) == "The capital of France is Paris.<|im_end|>"
