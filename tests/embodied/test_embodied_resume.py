"""Law 9 with real processes: an RPD run on MuJoCo that is killed by SIGKILL at any moment ends bit for bit as one that is not."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from redistill.core.state import checkpoints, newest_good

RUN = {
    "task": "button-press-topdown-v3:cap=15", "teacher": "expert:noise=0.5", "model": "mlp:width=16,depth=1", "steps": 6,
    "prompts_per_step": 3, "simulators": 2, "minibatches": 3, "epochs": 2, "eval_prompts": 2, "eval_every": 2, "save_every": 1,
    "anneal_steps": 200,
}  # fmt: skip


def start(out: Path, resume: bool) -> subprocess.Popen[bytes]:
    sets = [word for key, value in RUN.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "redistill.cli", "run", "rpd", "--quiet", "--out", str(out), *sets]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *(["--resume"] if resume else [])], env=environment, stdout=subprocess.DEVNULL)


def without_seconds(text: str) -> str:
    return re.sub(r'"seconds\w*": [\d.e+-]+', '"seconds": 0', text)


def outcome(out: Path) -> dict[str, object]:
    """Everything a run leaves, except for seconds."""
    found: dict[str, object] = {}
    for path in sorted((out / "model").iterdir()):
        found[path.name] = path.read_bytes()
    for path in sorted(checkpoints(out / "checkpoints")[-1].iterdir()):
        if path.name != "manifest.json":
            found[f"checkpoint {path.name}"] = path.read_bytes()
        else:
            parts = json.loads(without_seconds(path.read_text()))["parts"]
            found["facts"] = {name: facts for name, facts in parts.items() if name != "metrics"}
    for name in ("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "credit.jsonl", "views.txt", "result.json"):
        found[name] = without_seconds((out / name).read_text())
    return found


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, False).wait(300) == 0
    luck, kills = random.Random(3), 0
    for goal in (2, 4):
        process = start(cut, resume=goal > 2)
        while len(checkpoints(cut / "checkpoints")) == 0 or int(checkpoints(cut / "checkpoints")[-1].name[5:]) < goal:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(luck.uniform(0, 0.1))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        assert newest_good(cut / "checkpoints")[1] == []
    assert kills == 2
    assert start(cut, True).wait(300) == 0
    one, other = outcome(whole), outcome(cut)
    assert [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)] == []
