"""`redistill doctor`: exit 0 with the whole report, or 2 with the first thing that stands in the way."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from redistill import doctor
from redistill.cli import main
from redistill.errors import UserError
from redistill.tasks.sums import Sums
from redistill.text import examine as examined
from redistill.text import packing
from redistill.text.models import load_model, save_model


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["doctor", *words])
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.fixture(scope="module")
def relatives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pocket again, with another template; and with another end of sequence."""
    folder = tmp_path_factory.mktemp("relatives")
    lm = load_model("pocket")
    save_model(lm, folder / "same")
    lm.tokenizer.chat_template = lm.tokenizer.chat_template.replace("<u>", "Q: ")
    save_model(lm, folder / "template")
    lm = load_model("pocket")
    lm.tokenizer.eos_token = "<unk>"
    save_model(lm, folder / "eos")
    return folder


def test_a_recipe_a_file_and_a_method(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = call(capsys, "sdpo", "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["ok"] is True
    assert report["method"] == "sdpo"
    assert report["teachers"] == ["ema(0.05)"]
    assert report["agreement"][0]["template_nats"] == 0.0
    assert report["student"]["parameters"] == 342144
    assert report["student"]["eos"] == "</s>"
    assert report["packages"]["torch"] == torch.__version__
    plan = report["memory"]
    assert (plan["weights"], plan["optimiser"], plan["teacher copies"]) == (4 * 342144, 8 * 342144, 4 * 342144)
    assert plan["total"] == sum(size for name, size in plan.items() if name != "total")
    assert report["checkpoint_bytes"] == 4 * 342144 * 4
    recipe = tmp_path / "mine.toml"
    recipe.write_text('method = "rft"\nmodel = "pocket"\n')
    status, out, _ = call(capsys, str(recipe), "--set", "lora_rank=2")
    assert status == 0
    assert out.rstrip().endswith("nothing stands in the way of this run")
    lora = doctor.examine("rft", {"lora_rank": "2"})["memory"]
    expected = sum(p.numel() for p in load_model("pocket", lora_rank=2).trainable().values())
    assert lora["gradients"] == 4 * expected, "the adapter's own size"


def test_agreement_of_a_teacher_that_is_another_model(relatives: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = doctor.examine("opd", {"teacher": f"checkpoint({relatives / 'same'})"})
    assert same["agreement"][0]["says"] == "same tokens, special tokens, EOS and template"
    assert same["memory"]["teacher models"] == 4 * 342144
    for name, sentence in (("eos", "in eos_token: '</s>' and '<unk>'"), ("template", "in their chat templates")):
        status, out, err = call(capsys, "opd", "--set", f"teacher=checkpoint({relatives / name})")
        assert (status, out) == (2, "")
        assert sentence in err
        assert err.count("\n") == 1
    nats = float(err.split("costs the teacher ")[1].split()[0])
    assert -20 < nats < -0.05, "this teacher was trained with the student's template, so its own costs it more"


def test_template_mismatch_is_the_difference_of_two_losses(relatives: Path) -> None:
    lm, other = load_model("pocket"), load_model(str(relatives / "template"))
    assert examined.template_nats(lm, lm.tokenizer, Sums()) == 0.0
    assert examined.template_nats(lm, other.tokenizer, Sums()) == pytest.approx(
        -examined.template_nats(other, lm.tokenizer, Sums()), rel=1e-4
    )


def test_settings_tasks_and_names(capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        ((), "name a recipe"),
        (("sdpp",), "'sdpp' is neither a recipe nor a method; did you mean 'sdpo'?"),
        (("sdpo", "--set", "max_new_tokens=128"), "max_new_tokens=128 leaves no room"),
        (("sdpo", "--set", "treshold=1"), "'treshold'"),
        (("sdpo", "--task", "sum"), "task 'sum' is unknown"),
        (("opd", "--set", "teacher=served(http://127.0.0.1:9)", "--set", "served_tries=1"), "failed 1 times"),
    ):
        status, out, err = call(capsys, *words)
        assert (status, out) == (2, ""), words
        assert sentence in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("slug", ["ce", "crd"])
def test_other_domains_are_looked_at_as_far_as_they_can_be(slug: str) -> None:
    report = doctor.examine(slug, {})
    assert report["ok"]
    assert report["domain"] in ("vision", "generation")
    assert doctor.lines(report)[-1] == "nothing stands in the way of this run"


def test_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examined, "available", lambda: 2e7)
    with pytest.raises(UserError, match=r"largest part is activations with 0\.1 GB, set by micro_batch_tokens=2048"):
        doctor.examine("rft", {"micro_batch_tokens": 2048})
    assert doctor.examine("rft", {"micro_batch_tokens": 64, "sample_batch": 2})["ok"]


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"0\.00 GB free and one checkpoint needs"):
        doctor.examine("rft", {})


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted, sentence in (("nosuchthing>=1", "nosuchthing is not installed"), ("torch<1", "is outside of <1")):
        monkeypatch.setattr(doctor, "requires", lambda name, wanted=wanted: [wanted])
        with pytest.raises(UserError, match=sentence):
            doctor.check_packages()
    monkeypatch.setattr(doctor, "requires", lambda name: ['nosuchthing>=1; extra == "dev"'])
    assert doctor.check_packages()["torch"] == importlib.metadata.version("torch")


def test_the_estimate_of_activations_is_right_within_a_factor_of_2() -> None:
    """Counted by autograd itself: every distinct tensor that a forward pass of pocket saves, weights left out."""
    lm = load_model("pocket")
    weights = {p.untyped_storage().data_ptr() for p in lm.module.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    held: list[Any] = []
    pieces = [packing.Piece(i, tuple(range(5, 25)), tuple(range(5, 25)), ((0, 20),)) for i in range(48)]
    packed = packing.pack(pieces, share=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lm.hidden(packed.ids_BT, packed.mask_B1TT, packed.position_BT)
    config = lm.causal.config
    tokens = packed.ids_BT.numel()
    estimate = 4 * tokens * config.num_hidden_layers * (14 * config.hidden_size + 4 * config.intermediate_size)
    assert 0.5 < sum(saved.values()) / estimate < 2
