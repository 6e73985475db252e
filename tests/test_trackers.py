"""Trackers: what they are told is what the run's own log says, once a step, over resumes; and they change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import redistill.core.loop
from redistill.cli import main
from redistill.core.runs import RunFolder
from redistill.errors import UserError
from redistill.reporting import trackers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SETS = ("eval_prompts=4", "max_new_tokens=16", "prompts_per_step=2", "group_size=2", "save_every=2", "eval_every=2",
        "learning_rate=0.001")  # fmt: skip


def words(out: Path, tracker: str, steps: int = 5, *more: str) -> list[str]:
    sets = [word for pair in (*SETS, f"tracker={tracker}") for word in ("--set", pair)]
    return ["run", "grpo", "--json", "--steps", str(steps), "--out", str(out), *sets, *more]


def events(out: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar, as TensorBoard itself reads them."""
    reader = EventAccumulator(str(out / "tensorboard"))
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def told(out: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from metrics.jsonl: the run's own word. TensorBoard keeps single precision."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        group = "eval" if "evaluation" in record else "train"
        for key, value in record.items():
            if key != "step" and isinstance(value, (int, float)):
                found.setdefault(f"{group}/{key}", []).append((record["step"], pytest.approx(value, rel=1e-6)))
    return found


def die_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Break off at the start of a step, as a kill would: whatever was told is told."""
    real = redistill.core.loop.Run._one_step

    def one_step(self: Any, stage: Any) -> bool:
        if self.cursor.step == step:
            raise error
        return real(self, stage)

    monkeypatch.setattr(redistill.core.loop.Run, "_one_step", one_step)


# --- TensorBoard, the real one ------------------------------------------------------------------------------------------
def test_event_files_hold_what_the_log_says(tmp_path: Path) -> None:
    assert main(words(tmp_path / "run", "tensorboard")) == 0
    found = events(tmp_path / "run")
    assert found == told(tmp_path / "run")
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in found["eval/accuracy"]] == [0, 2, 4, 5]


def test_a_resumed_run_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off after step 3, when the last checkpoint is that of step 2: step 3 is done and told again."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        die_at(patch, 3, UserError("the machine goes"))
        assert main(words(out, "tensorboard")) == 2
    assert [step for step, _ in events(out)["train/loss"]] == [1, 2, 3]
    assert main(words(out, "tensorboard", 5, "--resume")) == 0
    assert len(list((out / "tensorboard").iterdir())) == 2
    found = events(out)
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5]
    assert found == told(out)


def test_a_tracker_changes_nothing(tmp_path: Path) -> None:
    for tracker in ("none", "tensorboard"):
        assert main(words(tmp_path / tracker, tracker)) == 0
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("none", "tensorboard"))
    assert one == two
    assert told(tmp_path / "none").keys() == told(tmp_path / "tensorboard").keys()


def test_a_run_may_be_resumed_with_another_tracker_or_one_from_before_there_were_any(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(words(out, "none", 2)) == 0
    config = json.loads((out / "config.json").read_text())
    del config["run"]["tracker"]
    (out / "config.json").write_text(json.dumps(config))
    assert main(words(out, "tensorboard", 4, "--resume")) == 0
    assert [step for step, _ in events(out)["train/loss"]] == [3, 4]


# --- W&B and Trackio: stand-ins that keep what they are told ------------------------------------------------------------
class FakeRun:
    """A run of a tracker."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given, self.told, self.ended = dict(given), [], []
        self.fails_at: int | None = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        print("a tracker that talks")
        if step == self.fails_at:
            raise ConnectionError("the line\nis dead")
        self.told.append((step, dict(values)))

    def finish(self, **how: Any) -> None:
        self.ended.append(how)


@pytest.fixture(params=["wandb", "trackio"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of that name whose runs are kept in `.runs`."""
    module: Any = ModuleType(request.param)
    module.runs, module.fails_at = [], None

    def init(**given: Any) -> FakeRun:
        module.runs.append(FakeRun(given))
        module.runs[-1].fails_at = module.fails_at
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def steps(run: FakeRun, group: str) -> list[int]:
    return [step for step, values in run.told if any(key.startswith(group) for key in values)]


def test_a_run_of_a_service_goes_on_under_its_name_and_no_step_is_told_twice(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        die_at(patch, 3, UserError("the machine goes"))
        assert main(words(out, fake.__name__)) == 2
    capsys.readouterr()
    assert main(words(out, fake.__name__, 5, "--resume")) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 5, "standard output is JSON only"
    first, second = fake.runs
    key = "id" if fake.__name__ == "wandb" else "name"
    assert first.given[key] == second.given[key]
    assert first.given["resume"] == second.given["resume"] == "allow"
    assert first.given["config"]["learning_rate"] == 0.001
    assert (steps(first, "train"), steps(second, "train")) == ([1, 2, 3], [4, 5])
    assert (steps(first, "eval"), steps(second, "eval")) == ([0, 2], [4, 5])
    assert [step for step, _ in first.told + second.told] == sorted(step for step, _ in first.told + second.told)
    assert len(first.ended) == len(second.ended) == 1
    if fake.__name__ == "wandb":
        assert (first.ended[0]["exit_code"], second.ended[0]["exit_code"]) == (1, 0)
        assert first.given["dir"] == str(out)
    values = dict(pair for run in fake.runs for pair in run.told if "train/loss" in pair[1])
    assert {step: value["train/loss"] for step, value in values.items()} == dict(told(out)["train/loss"])


def test_two_folders_are_two_runs(fake: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name / "run"
        assert main(words(folder, fake.__name__, 1)) == 0
    key = "id" if fake.__name__ == "wandb" else "name"
    assert fake.runs[0].given[key] != fake.runs[1].given[key]


def test_a_tracker_that_fails_under_way_is_one_warning_and_the_run_goes_on(
    fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.fails_at = 2
    given = [word for word in words(tmp_path / "run", fake.__name__, 4) if word != "--json"]
    assert main([*given, "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("warning: ") == 1
    assert f"tracker={fake.__name__} stopped at step 2 (the line is dead); metrics.jsonl has everything" in printed
    assert steps(fake.runs[0], "train") == [1]
    assert len(told(tmp_path / "run")["train/loss"]) == 4


def test_a_tracker_that_cannot_start_is_one_sentence(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**given: Any) -> Any:
        raise RuntimeError("no account\nhere")

    monkeypatch.setattr(fake, "init", init)
    assert main(words(tmp_path / "run", fake.__name__)) == 2
    said = capsys.readouterr()
    assert said.err == f"redistill: tracker={fake.__name__} could not be started: no account here\n"


def test_a_stop_closes_the_tracker(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = redistill.core.loop.update

    def update(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(redistill.core.loop, "update", update)
        assert main(words(tmp_path / "run", fake.__name__)) == 143
    assert steps(fake.runs[0], "train") == [1]
    assert len(fake.runs[0].ended) == 1


# --- asked for, and not there -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_one_sentence_before_anything_is_done(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    assert main(words(tmp_path / "run", kind)) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert f"tracker={kind} needs the package {kind!r}" in said.err
    assert "pip install redistill[trackers]" in said.err
    assert not (tmp_path / "run").exists()


def test_no_tracker_is_imported_unless_asked_for(tmp_path: Path) -> None:
    code = (
        "import sys; from redistill.cli import main; assert main(sys.argv[1:]) == 0; "
        "assert not {'tensorboard', 'wandb', 'trackio'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code, *words(tmp_path / "run", "none", 1)], check=True, capture_output=True)


def test_numbers_are_finite_and_flags_are_not_numbers() -> None:
    facts = {"step": 3, "of": 9, "loss": 1, "grad_norm": float("nan"), "stage": "x", "done": True, "high": float("inf")}
    assert trackers.numbers(facts) == {"loss": 1.0}


def test_what_was_told_is_read_from_a_log_that_was_cut_short(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 1, "evaluation": "x"}\n{"step": 2, "lo')
    assert trackers._logged(folder) == {("step", 1), ("evaluated", 1)}
    folder.close()
