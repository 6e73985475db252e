"""The networks: initial weights, coupling, saving, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from redistill.errors import UserError
from redistill.vision.models import load_model, make_model, save_model

DIGITS = {"side": 8, "classes": 10}


@pytest.mark.parametrize("name", ["cnn", "resnet", "resnet:blocks=2,width=8", "cnn:norm=none"])
@pytest.mark.parametrize("side", [8, 28])
def test_logits_have_the_right_shape(name, side):
    model = make_model(name, side=side, classes=7, seed=0)
    assert model.module(torch.rand(3, side, side)).shape == (3, 7)


def test_the_cnn_has_the_specification_s_size():
    """3 convolutions (16, 32, 64) of 3x3 without bias, batch norm's pairs, a linear layer."""
    model = make_model("cnn", **DIGITS, seed=0)
    expected = 9 * (1 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 10 + 10
    assert sum(p.numel() for p in model.module.parameters()) == expected


def test_initial_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    one = make_model("cnn", **DIGITS, seed=4).module.state_dict()
    torch.manual_seed(2)
    after = torch.rand(1)
    torch.manual_seed(2)
    other = make_model("cnn", **DIGITS, seed=4).module.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.rand(1), after), "torch's global generator moved"
    third = make_model("cnn", **DIGITS, seed=5).module.state_dict()
    assert not torch.equal(one["convs.0.weight"], third["convs.0.weight"])


@pytest.mark.parametrize(("norm", "coupled"), [("batch", True), ("group", False), ("none", False)])
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_only_batch_norm_couples_images(name, norm, coupled):
    model = make_model(f"{name}:norm={norm}", **DIGITS, seed=0, dtype=torch.float64)
    images = torch.rand(6, 8, 8, dtype=torch.float64)
    model.module.train()
    alone, together = model.module(images[:3]), model.module(images)[:3]
    assert torch.allclose(alone, together, atol=1e-12) is not coupled
    assert model.couples is coupled


@pytest.mark.parametrize("name", ["cnn:width=8", "resnet:blocks=2,norm=group"])
def test_a_saved_model_comes_back_with_its_statistics(name, tmp_path):
    model = make_model(name, **DIGITS, seed=0)
    model.module.train()(torch.rand(9, 8, 8))
    save_model(model, tmp_path / "run" / "model")
    images = torch.rand(4, 8, 8)
    for folder in ("run", "run/model"):
        again = make_model(str(tmp_path / folder), **DIGITS, seed=3)
        assert again.options == model.options
        assert torch.equal(again.module.eval()(images), model.module.eval()(images))


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a folder with config.json and model.safetensors"):
        load_model(str(tmp_path), **DIGITS)
    save_model(make_model("cnn", **DIGITS, seed=0), tmp_path)
    with pytest.raises(UserError, match=r"reads 8x8 images of 10 classes, the task has 28x28 images of 10 classes"):
        load_model(str(tmp_path), side=28, classes=10)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "options": {"width": 8, "norm": "batch"}}))
    with pytest.raises(UserError, match=r"its weights are not those of cnn:width=8,norm=batch"):
        load_model(str(tmp_path), **DIGITS)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"is not a folder with config.json and model.safetensors"):
        load_model(str(tmp_path), **DIGITS)
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": "another"}))
    with pytest.raises(UserError, match=r"is not a vision model of ours"):
        load_model(str(tmp_path), **DIGITS)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cn", r"vision model 'cn' is unknown; did you mean 'cnn'\?"),
        ("cnn:widht=4", r"has no option 'widht'; did you mean 'width'\?"),
        ("cnn:width=2", r"width=2 is out of range: it must be >= 4"),
        ("resnet:norm=layer", r"norm='layer' is not a choice"),
        ("cnn:blocks=2", r"vision model 'cnn' has no option 'blocks'"),
    ],
)
def test_bad_models_are_told_in_a_sentence(text, sentence):
    with pytest.raises(UserError, match=sentence):
        make_model(text, **DIGITS, seed=0)
