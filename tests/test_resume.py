"""Law 9 with real processes: runs that are killed, corrupted or out of disk end bit for bit where they would have.

Most runs are forked from a server that has imported everything once, so that killing one several times takes seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from redistill.core.runs import RunFolder
from redistill.core.state import checkpoints, newest_good

SMALL = "steps=6 save_every=2 prompts_per_step=2 group_size=4 max_new_tokens=16 eval_prompts=4 eval_every=3"
RUNS = {
    "grpo": f"grpo {SMALL} learning_rate=0.001 kl=0.1 minibatches=2 warmup_steps=3",
    "sdpo": f"sdpo {SMALL} learning_rate=0.001 teacher=ema(0.3) grpo_weight=0.5",
    "opd": f"opd {SMALL} learning_rate=0.01 teacher=checkpoint(pocket) teacher_view=with_solution on_policy=0.5 "
    "lora_rank=2",
    "two-stages": f"sdpo {SMALL} learning_rate=0.001 steps=4 warm_start_steps=3 teacher=ema(0.3) epochs=2",
}
PRELOAD = [
    "redistill.cli",
    "redistill.build",
    "redistill.text.assemble",
    "redistill.methods",
    "redistill.reporting.terminal",
]


def arguments(what: str, out: Path, resume: bool = False) -> list[str]:
    slug, *pairs = what.split()
    given = dict(pair.split("=", 1) for pair in pairs)  # the last one counts
    sets = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    return ["run", slug, "--quiet", "--out", str(out), *sets, *(["--resume"] if resume else [])]


def child(words: list[str], log: str, kill_at: int | None) -> None:
    """Run one command; with `kill_at`, die by SIGKILL at that change of a file or folder of a checkpoint."""
    import torch
    from redistill.cli import main

    torch.set_num_threads(1)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    left = [kill_at]

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "open") and "checkpoints/" in str(details[0]):
            left[0] = None if left[0] is None else left[0] - 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.exit(main(words))


def start(what: str, out: Path, kill_at: int | None = None, resume: bool | None = None) -> Any:
    """A process under way; it resumes where there is something to resume, unless told."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    resume = (out / "config.json").exists() if resume is None else resume
    Path(f"{out}.log").unlink(missing_ok=True)
    process = context.Process(target=child, args=(arguments(what, out, resume), f"{out}.log", kill_at))
    process.start()
    return process


def finish(what: str, out: Path) -> str:
    """Run to the end; what it printed."""
    process = start(what, out)
    process.join(120)
    printed = Path(f"{out}.log").read_text()
    assert process.exitcode == 0, printed
    return printed


def without_seconds(text: str) -> Any:
    return re.sub(r'"seconds\w*": [\d.e+-]+', '"seconds": 0', text)


def outcome(out: Path) -> dict[str, Any]:
    """Everything a run leaves, except for seconds: weights and optimiser bytes, logs, result."""
    found: dict[str, Any] = {
        str(p.relative_to(out)): p.read_bytes() for p in sorted((out / "model").rglob("*")) if p.is_file()
    }
    assert "model/model.safetensors" in found
    # A kill after a save may leave one more than keep_last, until the next save.
    found["names"] = [folder.name for folder in checkpoints(out / "checkpoints")[-2:]]
    for path in sorted(checkpoints(out / "checkpoints")[-1].iterdir()):
        if path.name != "manifest.json":
            found[path.name] = path.read_bytes()
        else:
            parts = json.loads(without_seconds(path.read_text()))["parts"]
            found["facts"] = {name: facts for name, facts in parts.items() if name != "metrics"}
    for name in ("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "credit.jsonl", "views.txt", "result.json"):
        found[name] = without_seconds((out / name).read_text())
    left = [path.name for path in out.rglob(".*") if path.name != ".lock"]
    assert left == [], "drafts are removed"
    return found


def assert_outcome(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)] == []


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcome of each run when nothing happens to it, and how long it takes."""
    known: dict[str, tuple[dict[str, Any], float, Path]] = {}

    def run(name: str) -> tuple[dict[str, Any], float, Path]:
        if name not in known:
            out = tmp_path_factory.mktemp("whole") / name
            finish(RUNS[name], out)
            known[name] = (outcome(out), json.loads((out / "result.json").read_text())["seconds"], out)
        return known[name]

    return run


@pytest.mark.parametrize("name", RUNS)
def test_law_9_killed_at_any_moment_and_resumed_bit_for_bit(name: str, whole: Any, tmp_path: Path) -> None:
    """A kill in the midst of a checkpoint, one at a random time, one in a checkpoint again, then to the end."""
    expected, seconds, _ = whole(name)
    luck = random.Random(name)
    out = tmp_path / "run"
    kills = 0
    for kill_at in (luck.randint(2, 9), None, luck.randint(10, 25)):
        process = start(RUNS[name], out, kill_at)
        while not Path(f"{out}.log").exists():
            time.sleep(0.01)
        process.join(120 if kill_at else 0.2 + seconds * luck.uniform(0.1, 0.6))
        if process.is_alive():
            process.kill()
            process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (-signal.SIGKILL, 0), Path(f"{out}.log").read_text()
        assert newest_good(out / "checkpoints")[1] == [], "a kill never leaves a checkpoint that is named and damaged"
    assert kills >= 2
    finish(RUNS[name], out)
    assert_outcome(outcome(out), expected)


def test_law_9_by_the_command_line_itself(whole: Any, tmp_path: Path) -> None:
    expected, _, _ = whole("grpo")
    out = tmp_path / "run"
    command = [sys.executable, "-m", "redistill.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([*command, *arguments(RUNS["grpo"], out)], env=environment, stdout=subprocess.DEVNULL)
    while not checkpoints(out / "checkpoints"):
        assert first.poll() is None
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert "already holds a run: add --resume" in refused(RUNS["grpo"], out, resume=False)
    subprocess.run([*command, *arguments(RUNS["grpo"], out, True)], env=environment, check=True, capture_output=True)
    assert_outcome(outcome(out), expected)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "manifest"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(damage: str, whole: Any, tmp_path: Path) -> None:
    expected, _, done = whole("grpo")
    out = tmp_path / "run"
    shutil.copytree(done, out)
    newest = checkpoints(out / "checkpoints")[-1]
    file = newest / ("manifest.json" if damage == "manifest" else "player-student.safetensors")
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data[: len(data) // 2] if damage == "truncated" else data)
    printed = " ".join(finish(RUNS["grpo"], out).split())
    assert newest.name in printed
    assert file.name in printed
    assert "the one before it is used" in printed
    assert_outcome(outcome(out), expected)


def test_more_steps_are_as_if_asked_for_at_first(whole: Any, tmp_path: Path) -> None:
    expected, _, _ = whole("grpo")
    out = tmp_path / "run"
    finish(f"{RUNS['grpo']} steps=4", out)
    finish(RUNS["grpo"], out)
    found = outcome(out)
    assert found["model/model.safetensors"] == expected["model/model.safetensors"]
    assert found["player-student.safetensors"] == expected["player-student.safetensors"]
    # The log also holds the evaluation at what was the end then.
    lines = [
        line for line in found["metrics.jsonl"].splitlines() if not line.startswith('{"step": 4, "evaluation": "after"')
    ]
    assert lines == expected["metrics.jsonl"].splitlines()


def refused(what: str, out: Path, resume: bool | None = None) -> str:
    """The sentence in which a command is refused."""
    process = start(what, out, resume=resume)
    process.join(60)
    printed = Path(f"{out}.log").read_text()
    assert process.exitcode == 2, printed
    assert "Traceback" not in printed
    sentences = [line for line in printed.splitlines() if line.startswith("redistill: ")]
    assert len(sentences) == 1
    return sentences[0]


def test_two_runs_cannot_write_one_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert "is being written by another process" in refused(RUNS["grpo"], tmp_path / "run")
    folder.close()


def test_resuming_with_other_settings_is_refused(whole: Any, tmp_path: Path) -> None:
    _, _, done = whole("grpo")
    out = tmp_path / "run"
    shutil.copytree(done, out)
    before = outcome(out)
    assert "learning_rate=0.002 differs from the run" in refused(f"{RUNS['grpo']} learning_rate=0.002", out)
    assert "clip_high=0.3 differs from the run" in refused(f"{RUNS['grpo']} clip_high=0.3", out)
    assert "steps=5 is no more than the 6 steps" in refused(f"{RUNS['grpo']} steps=5", out)
    after = outcome(out)
    assert_outcome(after, before)
    finish(RUNS["grpo"], out)
    assert_outcome(outcome(out), before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of 6 MB of its own: one checkpoint of 4 fits, a second does not."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("only root can mount a small disk; tests/core/test_state.py has the same with a failing call")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_loses_nothing_and_is_one_sentence(small_disk: Path, whole: Any) -> None:
    expected, _, _ = whole("grpo")
    out = small_disk / "run"
    process = start(RUNS["grpo"], out)
    process.join(120)
    printed = (small_disk / "run.log").read_text()
    assert process.exitcode == 2, printed
    assert "Traceback" not in printed
    (sentence,) = [line for line in printed.splitlines() if line.startswith("redistill: ")]
    assert "No space left on device" in sentence
    assert "the one before it is intact" in sentence
    folder, wrong = newest_good(out / "checkpoints")
    assert folder is not None
    assert wrong == []
    assert [path.name for path in (out / "checkpoints").iterdir()] == [folder.name]
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    finish(RUNS["grpo"], out)
    assert_outcome(outcome(out), expected)
