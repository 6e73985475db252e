"""The recorder only looks: a run is the same with and without it, its record is resumed with it, and its failure is not the run's."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from redistill.build import prepare
from redistill.core.stopping import Interrupted
from redistill.core.trace import Recorder
from redistill.text.domain import TextDomain

SMALL = {
    "model": "pocket", "task": "sums", "steps": 3, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 12,
    "eval_prompts": 4, "learning_rate": 1e-3, "utility": "false",
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"kl": 0.1},
    "sdpo": {"teacher": "ema(0.3)"},
    "ssb": {"batch": 4, "pairs": 4},
    "rltf": {},
}


def run(path: Path, slug: str, resume: bool = False, **more: Any) -> tuple[Path, list[str]]:
    warnings: list[str] = []

    def report(event: str, facts: Any) -> None:
        if event == "warning":
            warnings.append(facts["text"])

    going = prepare(slug, {**SMALL, **METHODS.get(slug, {}), **more}, out=path, resume=resume, report=report)
    try:
        going.go(resume)
    finally:
        going.close()
    return path, [text for text in warnings if "credit" in text]


def left(path: Path) -> dict[str, Any]:
    """Weights and logs of a run, except for seconds."""
    found: dict[str, Any] = {"model": (path / "model" / "model.safetensors").read_bytes()}
    for name in ("metrics.jsonl", "samples.jsonl"):
        found[name] = re.sub(r'"seconds\w*": [\d.e+-]+', "", (path / name).read_text())
    return found


def credit(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "credit.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("slug", METHODS)
def test_a_run_is_the_same_bit_for_bit_with_and_without_the_record(slug: str, tmp_path: Path) -> None:
    on, warned = run(tmp_path / "on", slug, trace_every=1)
    off, _ = run(tmp_path / "off", slug, trace_prompts=0)
    assert warned == []
    assert left(on) == left(off)
    assert (off / "credit.jsonl").read_text() == ""
    rows = credit(on)
    fixed = [row for row in rows if row["kind"] == "fixed"]
    assert {row["step"] for row in fixed} >= {0, 1, 2, 3}
    assert any(row["kind"] == "training" for row in rows)
    assert any(row["terms"] for row in rows)


def test_the_same_prompts_are_followed_through_training(tmp_path: Path) -> None:
    path, _ = run(tmp_path / "run", "sdpo", trace_every=2, trace_prompts=3, steps=4)
    by_step: dict[int, set[str]] = {}
    for row in credit(path):
        if row["kind"] == "fixed":
            by_step.setdefault(row["step"], set()).add(row["uid"])
    assert set(by_step) == {0, 2, 4}
    assert len({frozenset(uids) for uids in by_step.values()}) == 1
    assert len(by_step[0]) == 3


def test_the_record_goes_on_where_a_resumed_run_does(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", "sdpo", trace_every=1, save_every=2, steps=4)
    part, _ = run(tmp_path / "part", "sdpo", trace_every=1, save_every=2, steps=2)
    run(part, "sdpo", resume=True, trace_every=1, save_every=2, steps=4)
    assert credit(part) == credit(whole)


def test_a_record_that_fails_ends_with_one_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, *rest: Any) -> Any:
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(TextDomain, "inspect", broken)
        on, warned = run(tmp_path / "on", "sdpo", trace_every=1)
    off, _ = run(tmp_path / "off", "sdpo", trace_prompts=0)
    assert len(warned) == 1
    assert "could not be recorded (no)" in warned[0]
    assert left(on) == left(off)


def test_records_are_few_unless_asked_for() -> None:
    class Asked:
        def __init__(self, **settings: Any) -> None:
            self.config = type("Config", (), {"trace_prompts": 2, "trace_every": None, **settings})
            self.domain = type("Domain", (), {"inspect": None})

    for prompts in (1, 2, 4, 8, 32, 256):
        for steps in (10, 100, 1000):
            recorder = Recorder(Asked(prompts_per_step=prompts, steps=steps))  # type: ignore[arg-type]
            assert recorder.on
            assert 2 / (recorder.every * prompts) <= 0.02
            assert steps // recorder.every <= 20
            assert recorder.every >= 15
    assert Recorder(Asked(prompts_per_step=8, steps=9, trace_every=1)).every == 1  # type: ignore[arg-type]


def test_what_evolves_in_a_method_is_put_back(tmp_path: Path) -> None:
    """ssb's first stage fills a store, which is the method's and not the stage's; a record must not add to it."""
    seen = []
    original = Recorder._fixed

    def held(recorder: Recorder) -> str:
        parts = [part.state().facts for each in recorder.run.stages for part in each.method.state().values()]
        return json.dumps([dict(facts) for facts in parts], default=str)

    def watched(self: Recorder, stage: Any) -> None:
        before = held(self)
        original(self, stage)
        seen.append(before == held(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "_fixed", watched)
        run(tmp_path / "run", "ssb", trace_every=1)
    assert len(seen) >= 4
    assert all(seen)


def test_a_step_that_is_broken_off_and_made_again_is_recorded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sixth rollout is that of the third step, behind the fixed prompts of its record."""
    whole, _ = run(tmp_path / "whole", "grpo", trace_every=1)
    calls = 0
    original = TextDomain.rollout

    def rollout(self: TextDomain, *rest: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise Interrupted(signal.SIGTERM)
        return original(self, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(TextDomain, "rollout", rollout)
        with pytest.raises(Interrupted):
            run(tmp_path / "part", "grpo", trace_every=1)
    assert {row["step"] for row in credit(tmp_path / "part")} == {0, 1}
    part, _ = run(tmp_path / "part", "grpo", resume=True, trace_every=1)
    assert credit(part) == credit(whole)
