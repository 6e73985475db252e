"""SIGTERM and Ctrl-C: what was done is saved, one sentence says how to go on, and going on ends bit for bit where an
uninterrupted run does."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redistill.core.loop
import redistill.core.state
import redistill.methods.ssb
import redistill.text.assemble
import redistill.text.domain
from redistill.cli import main
from redistill.core.state import checkpoints, newest_good
from redistill.core.stopping import Interrupted, Stop
from redistill.tasks import worker

from test_resume import RUNS, arguments, assert_outcome, finish, outcome, start

BOTH = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The outcome of each run when nothing happens to it."""
    known: dict[str, dict[str, Any]] = {}

    def run(name: str) -> dict[str, Any]:
        if name not in known:
            out = tmp_path_factory.mktemp("uninterrupted") / name
            finish(RUNS[name], out)
            known[name] = outcome(out)
        return known[name]

    return run


def told(text: str) -> str:
    """The one sentence of a stopped run."""
    assert "Traceback" not in text
    (sentence,) = [line for line in text.splitlines() if line.startswith("redistill: ")]
    return sentence


def last_step(out: Path) -> int:
    return int(json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"])


def steps_logged(out: Path) -> int:
    log = out / "metrics.jsonl"
    return sum('"stage"' in line for line in log.read_text().splitlines()) if log.exists() else 0


# --- real processes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "number", "status", "after"), [
    ("grpo", signal.SIGTERM, 143, 1), ("sdpo", signal.SIGINT, 130, 3), ("two-stages", signal.SIGTERM, 143, 3),
    ("opd", signal.SIGINT, 130, 1),
])  # fmt: skip
def test_a_stopped_process_saves_its_step_and_ends_where_it_would_have(
    name: str, number: int, status: int, after: int, expected: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(RUNS[name], out)
    while steps_logged(out) < after:
        assert process.is_alive(), Path(f"{out}.log").read_text()
        time.sleep(0.005)
    os.kill(process.pid, number)
    process.join(60)
    printed = Path(f"{out}.log").read_text()
    assert process.exitcode == status, printed
    newest, refused = newest_good(out / "checkpoints")
    assert newest is not None
    assert refused == []
    assert int(newest.name.removeprefix("step-")) == last_step(out) >= after, "what was done is saved"
    assert str(newest) in told(printed)
    assert not (out / "result.json").exists()
    words = shlex.split(told(printed).split("`")[1])
    assert words == ["redistill", *arguments(RUNS[name], out), "--resume"]
    finish(RUNS[name], out)
    assert_same(out, expected(name))


def test_ctrl_c_of_a_terminal_reaches_the_helper_process_too(tmp_path: Path) -> None:
    """A terminal sends it to the whole group; the step under way still needs the process that judges answers."""
    sets = [
        "prompts_per_step=2",
        "group_size=2",
        "max_new_tokens=16",
        "eval_prompts=2",
        "save_every=99",
        "utility=false",
    ]
    task = "chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1,answer_format=plain"
    words = ["run", "rft", "--task", task, "--steps", "200", "--quiet", "--out", str(tmp_path / "run")]
    words += [word for pair in sets for word in ("--set", pair)]
    process = subprocess.Popen(
        [sys.executable, "-m", "redistill.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while steps_logged(tmp_path / "run") < 2:
        if process.poll() is not None:
            pytest.fail(process.communicate()[0])
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130, printed
    assert "is saved" in told(printed)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step-{steps[-1]['step']:08d}"
    feedback = (tmp_path / "run" / "samples.jsonl").read_text()
    assert "died" not in feedback
    assert "seconds" not in feedback, "no answer was given up"


# --- every kind of moment, in process -----------------------------------------------------------------------------------
def strike(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, at: int, numbers: tuple[int, ...], when: str = "before"
) -> None:
    """Send signals to this process at the `at`-th call of a function (from 0), before or after it does its work."""
    real, calls = getattr(module, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        mine = calls[0] == at
        calls[0] += 1
        if mine and when == "before":
            for number in numbers:
                os.kill(os.getpid(), number)
        made = real(*args, **kwargs)
        if mine and when == "after":
            for number in numbers:
                os.kill(os.getpid(), number)
        return made

    monkeypatch.setattr(module, name, wrapped)


def stopped(
    capsys: pytest.CaptureFixture[str], out: Path, status: int, what: str = RUNS["grpo"], resume: bool = False
) -> str:
    before = [signal.getsignal(number) for number, _ in BOTH]
    assert main(arguments(what, out, resume)) == status
    assert [signal.getsignal(number) for number, _ in BOTH] == before, "handlers are given back"
    return told(capsys.readouterr().err)


def assert_same(out: Path, wanted: dict[str, Any]) -> None:
    """The outcome is the same, but that one more checkpoint may be kept: that of the stop."""
    found = outcome(out)
    assert found["names"][-1] == wanted["names"][-1]
    assert_outcome({**found, "names": []}, {**wanted, "names": []})


def saved_names(out: Path) -> list[str]:
    return [folder.name for folder in checkpoints(out / "checkpoints")]


@pytest.mark.parametrize(("number", "status"), BOTH)
@pytest.mark.parametrize(("evaluation", "step"), [(0, 0), (1, 3), (2, 6)])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_evaluation_is_broken_off_and_made_again(
    evaluation: int, step: int, when: str, number: int, status: int, expected: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """RUNS['grpo'] evaluates before, at step 3 and after step 6; only the checkpoint of step 3 is out of the ordinary."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        strike(patch, redistill.text.domain, "evaluate", evaluation, (number,), when)
        sentence = stopped(capsys, out, status)
    assert f"after step {step}; {out}/checkpoints/step-{step:08d} is saved" in sentence
    labels = [line for line in (out / "metrics.jsonl").read_text().splitlines() if "evaluation" in line]
    assert len(labels) == evaluation
    assert main(arguments(RUNS["grpo"], out, True)) == 0
    assert_same(out, expected("grpo"))


@pytest.mark.parametrize("call", [0, 2, 4, 5])
def test_a_step_under_way_is_finished(
    call: int, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        strike(patch, redistill.core.loop, "update", call, (signal.SIGTERM,))
        stopped(capsys, out, 143)
    assert last_step(out) == call + 1
    assert main(arguments(RUNS["grpo"], out, True)) == 0
    assert_same(out, expected("grpo"))


def test_a_checkpoint_under_way_is_finished_and_not_written_twice(
    expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        strike(patch, redistill.core.state, "digest", 0, (signal.SIGTERM,))
        saves: list[int] = []
        real = redistill.core.state.State.save
        patch.setattr(
            redistill.core.state.State, "save", lambda self, *a, **k: (saves.append(a[1]), real(self, *a, **k))[1]
        )
        stopped(capsys, out, 143)
    assert saves == [2]
    assert saved_names(out) == ["step-00000002"]
    assert main(arguments(RUNS["grpo"], out, True)) == 0
    assert_same(out, expected("grpo"))


def test_stopped_and_resumed_at_every_step(
    expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    what = RUNS["two-stages"]
    for step in range(1, 7):
        with monkeypatch.context() as patch:
            strike(patch, redistill.core.loop, "update", 0, (signal.SIGINT,), "after")
            assert f"after step {step};" in stopped(capsys, out, 130, what, resume=step > 1)
    assert main(arguments(what, out, True)) == 0
    assert_same(out, expected("two-stages"))


def test_a_second_ctrl_c_stops_at_once(
    expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        strike(patch, redistill.core.loop, "update", 5, (signal.SIGINT, signal.SIGINT))
        sentence = stopped(capsys, out, 130)
    assert f"stopped at once; {out}/checkpoints/step-00000004 is intact" in sentence
    assert saved_names(out) == ["step-00000002", "step-00000004"]
    assert last_step(out) == 5, "its record was written; it is done again"
    assert main(arguments(RUNS["grpo"], out, True)) == 0
    assert_same(out, expected("grpo"))


def test_a_second_signal_before_there_is_a_checkpoint_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        strike(patch, redistill.core.loop, "update", 0, (signal.SIGTERM, signal.SIGTERM))
        assert "stopped at once; there was no checkpoint yet" in stopped(capsys, tmp_path / "run", 143)


def test_before_the_model_is_there_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        strike(patch, redistill.text.assemble, "load_model", 0, (signal.SIGTERM,))
        assert "before the run began; the same command starts it again" in stopped(capsys, out, 143)
    assert not out.exists()
    assert main([*arguments(RUNS["grpo"], out), "--set", "steps=1"][:-2]) == 0


def test_a_users_verifier_does_not_catch_the_stop() -> None:
    def judge(stop: Stop) -> None:
        with stop.listening(), contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(Interrupted):
        judge(Stop())


def test_the_helper_process_ignores_ctrl_c_and_a_broken_off_call_does_not_answer_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "chain_sum" in worker.call("names", 30.0)
    process = worker._CLIENT._process
    assert process is not None
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None

    def broken_off(seconds: float) -> Any:
        raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(worker._CLIENT, "_read", broken_off)
        with pytest.raises(Interrupted):
            worker.call("describe", 30.0, name="chain_sum")
    assert "chain_sum" in worker.call("names", 30.0), "not the answer of the call before"


def test_the_python_call_leaves_signals_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import redistill

    seen = []
    monkeypatch.setattr(
        redistill.core.loop, "update", lambda *args: seen.append(signal.getsignal(signal.SIGINT)) or {"skipped": 0.0}
    )
    redistill.run("rft", out=tmp_path / "run", steps=1, eval_prompts=2, prompts_per_step=1, group_size=1)
    assert seen == [signal.getsignal(signal.SIGINT)]


# --- sampling, and a second Ctrl-C in the midst of each kind of work ------------------------------------------------------
QUIET = "grpo without credit"
RUNS[QUIET] = f"{RUNS['grpo']} trace_prompts=0"
"""Every rollout is then a step's."""


@pytest.mark.parametrize(("number", "status"), BOTH)
@pytest.mark.parametrize("when", ["before", "after"])
def test_sampling_is_broken_off_and_made_again(
    when: str, number: int, status: int, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The fourth rollout is that of step 4: three steps are done, and those are saved."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        strike(patch, redistill.text.domain.TextDomain, "rollout", 3, (number,), when)
        sentence = stopped(capsys, out, status, RUNS[QUIET])
    assert f"after step 3; {out}/checkpoints/step-00000003 is saved" in sentence
    assert last_step(out) == 3
    assert main(arguments(RUNS[QUIET], out, True)) == 0
    assert_same(out, expected(QUIET))


def test_the_first_sampling_of_a_stage_belongs_to_a_step_that_is_finished(
    expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stage has begun by then (optimiser, copies): to begin it again would be another beginning."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        strike(patch, redistill.text.domain.TextDomain, "rollout", 0, (signal.SIGTERM,))
        assert "after step 4;" in stopped(capsys, out, 143, RUNS["two-stages"])
    assert main(arguments(RUNS["two-stages"], out, True)) == 0
    assert_same(out, expected("two-stages"))


GATHERS = "ssb that gathers"
RUNS[GATHERS] = (
    "ssb pairs=99 batch=3 gather_steps=3 steps=2 prompts_per_step=6 group_size=4 max_new_tokens=16 eval_prompts=4 save_every=9 "
    "lora_rank=0 lora_alpha=none learning_rate=0.001 trace_prompts=0 utility=false"
)


def test_a_step_that_fills_a_store_is_finished(
    expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a method keeps is filled while it samples: half a step's records would be kept twice."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        strike(patch, redistill.methods.ssb.SSB, "remember", 3, (signal.SIGTERM,), "after")
        stopped(capsys, out, 143, RUNS[GATHERS])
    assert int(newest_good(out / "checkpoints")[0].name[5:]) == last_step(out) >= 1  # type: ignore[union-attr]
    assert main(arguments(RUNS[GATHERS], out, True)) == 0
    assert_same(out, expected(GATHERS))


@pytest.mark.parametrize("name", ["save_file", "digest", "_sync"])
def test_a_second_ctrl_c_stops_a_save_at_once(
    name: str, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first breaks off the sampling of step 4, the second comes while step 3 is saved for it."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        strike(patch, redistill.text.domain.TextDomain, "rollout", 3, (signal.SIGINT,))
        strike(patch, redistill.core.state, name, {"save_file": 4, "digest": 9, "_sync": 14}[name], (signal.SIGINT,))
        sentence = stopped(capsys, out, 130, RUNS[QUIET])
    assert f"stopped at once; {out}/checkpoints/step-00000002 is intact" in sentence
    assert saved_names(out) == ["step-00000002"]
    assert main(arguments(RUNS[QUIET], out, True)) == 0
    assert_same(out, expected(QUIET))


def test_weights_that_were_swapped_away_when_the_signal_came_are_back_before_they_are_saved(
    expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal may come at any instruction, also where weights are being put back."""
    real, calls = redistill.text.domain.TextDomain.rollout, [0]

    def rollout(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            for tensor in self.players["student"].tensors.values():
                tensor.data = tensor.data + 1.0
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **kwargs)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(redistill.text.domain.TextDomain, "rollout", rollout)
        assert "after step 3;" in stopped(capsys, out, 143, RUNS[QUIET])
    assert main(arguments(RUNS[QUIET], out, True)) == 0
    assert_same(out, expected(QUIET))
