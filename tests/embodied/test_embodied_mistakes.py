"""What goes wrong in embodied runs, at the command line: one plain sentence, exit status 2, nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redistill.embodied.simulators
import torch
from redistill.cli import main
from redistill.embodied.models import load_model

from embodied_lab import SMALL, saved_policy


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused("ppo", task=...)`: the one sentence of a run that ends with status 2."""

    def call(slug: str, **given: Any) -> str:
        sets = [word for key, value in {**SMALL, "steps": 2, **given}.items() for word in ("--set", f"{key}={value}")]
        capsys.readouterr()
        status = main(["run", slug, "--quiet", "--out", str(tmp_path / "run"), *sets])
        said = capsys.readouterr()
        assert status == 2, said.out + said.err
        assert "Traceback" not in said.out + said.err
        (line,) = said.err.strip().splitlines()
        assert line.startswith("redistill: ")
        return line

    return call


@pytest.mark.parametrize(("given", "told"), [
    ({"task": "drawer-opn-v3"}, "embodied task 'drawer-opn-v3' is unknown; did you mean 'drawer-open-v3'?"),
    ({"task": "drawer-open-v3:reward=spars"}, "reward='spars' is not a choice; did you mean 'sparse'?"),
    ({"task": "drawer-open-v3:camera=1"}, "embodied task 'drawer-open-v3' has no option 'camera'"),
    ({"task": "drawer-open-v3:cap=600"}, "cap=600 is out of range: it must be >= 1 and <= 500"),
    ({"task": "gymnasium/Pendulm-v1"}, "gymnasium has no environment 'Pendulm-v1'; did you mean 'Pendulum-v1'?"),
    ({"task": "gymnasium/LabChoice-v0"}, "task 'gymnasium/LabChoice-v0' has actions of the kind Discrete(): they must be a flat Box"),
    ({"task": "gymnasium/Pendulum-v1:mass=2"}, "task 'gymnasium/Pendulum-v1' option mass=2 needs a MuJoCo simulator"),
    ({"model": "mpl"}, "model 'mpl' is unknown; did you mean 'mlp'?"),
    ({"model": "mlp:widht=3"}, "model 'mlp' has no option 'widht'; did you mean 'width'?"),
    ({"teacher": "expret"}, "teacher 'expret' is unknown; did you mean 'expert'?"),
    ({"teacher": "expert:noise=-1"}, "noise=-1 is out of range: it must be >= 0"),
    ({"teacher": "expert"}, "task 'gymnasium/LabPoint-v0' comes with no script to be its expert"),
    ({"teacher": "policy:folder=/no/such"}, "there is no folder '/no/such'"),
    ({"teacher": "policy"}, "names no folder: write policy:folder=PATH"),
    ({"minibatches": 9}, "minibatches=9 is more than the 8 episodes of an update"),
])  # fmt: skip
def test_a_word_that_is_wrong(refused: Any, tmp_path: Path, given: dict[str, Any], told: str) -> None:
    assert told in refused("ppo", **given)
    assert not (tmp_path / "run").exists()


def test_rpd_without_a_teacher(refused: Any) -> None:
    assert "rpd needs a teacher: write teacher=expert:noise=1 or teacher=policy:folder=PATH" in refused("rpd")


@pytest.mark.parametrize(
    ("package", "task"), [("metaworld", "drawer-open-v3"), ("gymnasium", "gymnasium/LabPoint-v0:cap=13")]
)
def test_a_package_that_is_missing(refused: Any, monkeypatch: pytest.MonkeyPatch, package: str, task: str) -> None:
    known = redistill.embodied.simulators.find_spec
    monkeypatch.setattr(
        redistill.embodied.simulators, "find_spec", lambda name: None if name == package else known(name)
    )
    sentence = refused("ppo", task=task)
    assert f"needs the package {package}, which is not installed: pip install 'redistill[embodied]'" in sentence


def test_what_is_seen_is_not_a_number(refused: Any) -> None:
    sentence = refused("ppo", task="gymnasium/LabBlindPoint-v0:cap=12,success=-4")
    assert (
        "task 'gymnasium/LabBlindPoint-v0' gave an observation whose entry 2 is nan, after 3 actions of start "
        in sentence
    )


@pytest.mark.parametrize(("task", "told"), [
    ("gymnasium/LabRichPoint-v0:cap=12,success=-4", "gave reward inf for action 3 of start"),
    ("gymnasium/LabPoint-v0:cap=12,success=-4,low=-0.01", ", outside its range [-0.01, inf]"),
    ("gymnasium/LabPoint-v0:cap=12,success=-4,high=-9", ", outside its range [-inf, -9]"),
])  # fmt: skip
def test_a_reward_that_is_out_of_range(refused: Any, task: str, told: str) -> None:
    assert told in refused("ppo", task=task)


def test_a_teacher_of_another_size(refused: Any, tmp_path: Path) -> None:
    for sizes, told in (
        ((4, 3), "has actions of 3 numbers, the task has 2"),
        ((5, 2), "has observations of 5 numbers, the task has 4"),
    ):
        text = saved_policy(tmp_path / f"{sizes[0]}-{sizes[1]}", *sizes)
        assert f"teacher '{tmp_path / f'{sizes[0]}-{sizes[1]}'}' {told}" in refused("rpd", teacher=text)
        assert f"model '{tmp_path / f'{sizes[0]}-{sizes[1]}'}' {told}" in refused(
            "ppo", model=str(tmp_path / f"{sizes[0]}-{sizes[1]}")
        )


def test_a_policy_that_is_damaged(refused: Any, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    text = saved_policy(folder)
    config = (folder / "config.json").read_text()
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:100])
    assert "model.safetensors is missing, cut short or corrupt" in refused("rpd", teacher=text)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(config.replace('"width": 8', '"width": 16'))
    assert "its weights are not those of its config.json" in refused("rpd", teacher=text)
    (folder / "config.json").write_text(json.dumps({"format": "other"}))
    assert "is not an embodied policy of ours" in refused("ppo", model=str(folder))
    (folder / "config.json").write_text("{")
    assert "is not a folder with config.json and model.safetensors" in refused("ppo", model=str(folder))
    (folder / "config.json").write_text(config)
    assert load_model(str(folder), observations=4, actions=2, dtype=torch.float64).options.width == 8


def test_resume_with_another_world_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "ppo", "--quiet", "--out", str(tmp_path / "run")]
    sets = [word for key, value in {**SMALL, "steps": 1}.items() for word in ("--set", f"{key}={value}")]
    assert main([*words, *sets]) == 0
    other = [word.replace("cap=12", "cap=13") for word in sets]
    assert main([*words, *other, "--resume"]) == 2
    assert "differs from the run" in capsys.readouterr().err
