"""Tasks, judges, the shipped model, evaluation, saving, and mistakes of the generation domain."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from redistill.build import prepare
from redistill.config import load_recipe
from redistill.core.episode import flat
from redistill.core.task import Prompt
from redistill.errors import UserError
from redistill.generation.evaluate import evaluate, frechet, within_class_spread
from redistill.generation.grid import tiled
from redistill.generation.models import ASSETS, judge, load_model, make_model, real_digits
from redistill.generation.tasks import REWARDS, DigitTask, load_task, thickness, to_bytes, written
from redistill.generation.trajectories import Condition, Noised
from redistill.reporting.terminal import reporter
from scipy.linalg import sqrtm

from generation_lab import SMALL, Lab

SHIPPED = {"model": "flow-digits", "dtype": "float32"}


def test_the_real_digits_are_the_first_by_hash_and_no_network_saw_them() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.ascontiguousarray(data.images / 16.0, dtype=np.float32)
    order = sorted(range(len(images)), key=lambda i: hashlib.sha256(images[i].tobytes()).hexdigest())[:397]
    assert np.array_equal(real_digits()["images"].numpy(), images[order])
    assert np.array_equal(real_digits()["labels"].numpy(), data.target[order])


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_judges_know_digits_that_they_have_not_seen(name: str) -> None:
    real = real_digits()
    right = (judge(name)(real["images"]).argmax(-1) == real["labels"]).double().mean()
    assert float(right) > 0.95
    assert json.loads((ASSETS / "training.json").read_text())[f"accuracy of judge {name}"] == pytest.approx(
        float(right), abs=0.006
    )


def test_the_shipped_model_draws_digits() -> None:
    lab = Lab("crd", **SHIPPED, eval_prompts=100, eval_sampling_steps=10)
    found = lab.domain.evaluate("before")
    assert found["correct"] > 0.85
    assert 0.25 < found["ink"] < 0.35
    assert found["drift"] == 0.0
    assert found["low"] < found["reward"] < found["high"]
    assert found["reward"] == pytest.approx(np.mean(found["outcomes"]))
    assert lab.domain.evaluate("again") == found
    guided = Lab("crd", **SHIPPED, eval_prompts=100, eval_sampling_steps=10, eval_guidance=3.0).domain.evaluate(
        "before"
    )
    assert guided["correct"] >= found["correct"]
    assert guided["spread"] < found["spread"]


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_of_real_digits(name: str) -> None:
    task, real = load_task(name), real_digits()
    finished = to_bytes(2 * real["images"] - 1)
    labels = real["labels"].tolist()
    rewards = task.rewards(labels, finished)
    assert bool(((rewards >= 0) & (rewards <= 1)).all())
    pixels = finished.float() / 255
    p = judge("train")(pixels).softmax(-1)[torch.arange(len(labels)), real["labels"]]
    thick = ((pixels.mean((1, 2)) - 0.2) / 0.3).clamp(0, 1)
    expected = {"digits-legible": p, "digits-thick": p * thick, "digits-ink": thick}[name]
    torch.testing.assert_close(rewards, expected)
    wrong = task.rewards([(label + 1) % 10 for label in labels], finished)
    assert (float(wrong.mean()) < 0.1) == (name != "digits-ink")
    prompt = Prompt("x", {"label": labels[0]})
    assert task.verify(prompt, written(finished[0])).reward == pytest.approx(float(rewards[0]), abs=1e-6)


@pytest.mark.parametrize("answer", ["", "zz", "00" * 63, "3" * 127, "a cat", "00" * 65])
def test_any_text_gets_a_verdict(answer: str) -> None:
    verdict = load_task("digits-ink").verify(Prompt("x", {"label": 3}), answer)
    assert (verdict.reward, verdict.format_ok) == (0.0, False)


def test_thickness_and_bytes() -> None:
    flat_images = torch.tensor([0.1, 0.2, 0.35, 0.5, 0.9])[:, None, None].expand(5, 8, 8)
    assert thickness(flat_images).tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0], abs=1e-6)
    assert to_bytes(torch.tensor([[[-3.0, -1.0, 0.0, 1.0, 3.0]]])).tolist() == [[[0, 0, 128, 255, 255]]]


def test_prompts() -> None:
    task = DigitTask("digits-thick")
    stream = [task.train(i, 7).content["label"] for i in range(40)]
    assert all(sorted(stream[low : low + 10]) == list(range(10)) for low in range(0, 40, 10))
    assert stream != [task.train(i, 8).content["label"] for i in range(40)]
    held_out = task.held_out(30)
    assert [prompt.content["label"] for prompt in held_out] == [*range(10)] * 3
    assert not {prompt.uid for prompt in held_out} & {task.train(i, 0).uid for i in range(50)}
    assert len({prompt.uid for prompt in task.held_out(5000)}) == 1000


def test_frechet_is_scipy_s() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(40, 6, generator=generator, dtype=torch.float64)
        @ torch.randn(6, 6, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    one, other = (a.mean(0), a.T.cov()), (b.mean(0) + 1.0, b.T.cov())
    cross = np.trace(sqrtm(one[1].numpy() @ other[1].numpy()).real)
    expected = float((one[0] - other[0]).square().sum() + one[1].trace() + other[1].trace()) - 2 * cross
    assert frechet(*one, *other) == pytest.approx(expected, rel=1e-8)
    assert frechet(*one, *one) == pytest.approx(0.0, abs=1e-9)


def test_real_digits_evaluate_as_real() -> None:
    real, task = real_digits(), load_task("digits-legible")
    prompts = [Prompt(str(i), {"label": int(label)}) for i, label in enumerate(real["labels"])]
    found = evaluate(task, prompts, 2 * real["images"] - 1)
    assert found["spread"] == pytest.approx(1.0, abs=0.01)
    assert found["frechet"] < 0.1
    assert found["correct"] > 0.95
    blank = evaluate(task, prompts, -torch.ones(len(prompts), 8, 8))
    assert blank["frechet"] > 10 * found["frechet"]
    assert blank["spread"] == 0.0
    assert within_class_spread(torch.zeros(20, 8, 8), torch.arange(10).repeat(2)) == 0.0


def test_rows_of_samples() -> None:
    lab = Lab("crd")
    groups = lab.collect()
    made = lab.domain.noised(groups, 3, 0.8, True)
    episodes = flat(groups)
    assert made.source.tolist() == [g * 4 + j for g in range(3) for _ in range(3) for j in range(4)]
    assert made.cell.tolist() == [g * 3 + k for g in range(3) for k in range(3) for _ in range(4)]
    assert lab.domain.training_times(0.8).tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4])
    times: dict[int, set[float]] = {}
    for row, source, cell in zip(made.rows, made.source.tolist(), made.cell.tolist()):
        point = row.trajectory
        assert isinstance(point, Noised)
        assert torch.equal(point.x0, episodes[source].trajectory.x0)
        assert row.context == Condition(episodes[source].context.label, 1.0)
        times.setdefault(cell, set()).add(point.t)
    assert all(len(own) == 1 for own in times.values())
    assert len(set().union(*(times[cell] for cell in range(3)))) == 3
    assert len({tuple(row.trajectory.eps.flatten().tolist()) for row in made.rows}) == len(made.rows)


def test_sampling_with_a_copy_does_not_use_the_student() -> None:
    lab = Lab("crd", sampler="frozen", guidance=2.0)
    before = [e.text for e in flat(lab.collect())]
    lab.nudge()
    assert [e.text for e in flat(lab.collect())] == before
    assert [e.text for e in flat(lab.domain.rollout([lab.task.train(0, 0)]))] != before[:4]
    assert flat(lab.collect())[0].context.guidance == 2.0


def test_a_run_saves_its_model_and_a_grid_and_goes_on_from_it(tmp_path: Path) -> None:
    run = prepare(
        "crd", {**SMALL, "dtype": "float32", "steps": 1}, out=tmp_path / "run", report=reporter(quiet=True, silent=True)
    )
    run.go(False)
    run.close()
    folder = tmp_path / "run" / "model"
    assert (folder / "samples.png").read_bytes()[:4] == b"\x89PNG"
    again = load_model(str(tmp_path / "run")).module.state_dict()
    for name, tensor in run.domain.players["student"].module.state_dict().items():
        assert torch.equal(again[name], tensor)
    assert make_model(str(folder), seed=0).options == run.domain.model.options  # type: ignore[attr-defined]
    assert "=== anchor: the teacher frozen reads ===" in (tmp_path / "run" / "views.txt").read_text()


def test_grids_have_a_row_for_each_class() -> None:
    images = torch.arange(20, dtype=torch.uint8)[:, None, None].expand(20, 8, 8)
    sheet = tiled(images, [i % 10 for i in range(20)], across=2)
    assert sheet.shape == (89, 17)
    assert [int(sheet[9 * label, 0]) for label in range(10)] == list(range(10))
    assert [int(sheet[9 * label, 9]) for label in range(10)] == list(range(10, 20))


@pytest.mark.parametrize("name", ["crd", "nft", "flow-grpo"])
def test_recipes_run_a_step(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    given: dict[str, Any] = {
        **recipe.run,
        **recipe.options,
        "steps": 1,
        "eval_prompts": 20,
        "eval_every": 0,
        "save_model": "false",
    }
    run = prepare(recipe.method, given, out=tmp_path / name, report=reporter(quiet=True, silent=True))
    result = run.go(False)
    run.close()
    assert result["skipped_updates"] == 0
    assert result["evaluations"]["after"]["drift"] > 0


def test_damaged_models_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a folder with config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"is not a folder with config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes((ASSETS / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="is not a generation model of ours"):
        load_model(str(tmp_path))
    config = json.loads((ASSETS / "config.json").read_text())
    config["options"]["width"] = 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"its weights are not those of its config\.json"):
        load_model(str(tmp_path))
