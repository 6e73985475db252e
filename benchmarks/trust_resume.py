"""Exact resume, checkpoints and long runs, in figures: kills, damaged inputs, states, memory. `python -m benchmarks.trust_resume`"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redistill.core.state import checkpoints, newest_good

from benchmarks.resume_fuzz import fuzz
from benchmarks.resume_hygiene import hygiene
from benchmarks.resume_runs import Full, finish, names, outcome, printed, slugs, start, unequal
from benchmarks.resume_states import examine

MOMENTS = ("anywhere", "checkpoint", "full disk")
"""When a process is killed: at a random time; at a random change of a checkpoint's files; while the disk refuses more."""


@dataclass
class Kills:
    """What a campaign of kills came to."""

    kills: int = 0
    resumed_exact: int = 0
    """Kills of runs that ended, resumed, bit for bit as one that nothing happened to."""
    moments: Counter[str] = field(default_factory=Counter)
    runs: set[str] = field(default_factory=set)
    full_disks: int = 0
    """Times that a run met a full disk, ended in one sentence and lost nothing (beside those that were killed there)."""
    wrong: list[str] = field(default_factory=list)
    """What was not as it must be; empty."""


def campaign(wanted: int, folder: Path, seed: int = 0, among: list[str] | None = None, moments: Any = MOMENTS) -> Kills:
    """Kill runs of every method, domain and kind of state, in turn, until there have been `wanted` kills."""
    luck, found = random.Random(seed), Kills()
    known: dict[str, tuple[dict[str, Any], float]] = {}
    order = luck.sample(among or names(), len(among or names()))
    number = 0
    while found.kills < wanted:
        if number > 10 * wanted + 10:
            found.wrong.append(f"{number} runs made {found.kills} kills only")
            break
        name = order[number % len(order)]
        number += 1
        if name not in known:
            began = time.monotonic()
            finish(name, folder / "whole")
            known[name] = (outcome(folder / "whole"), time.monotonic() - began)
            shutil.rmtree(folder / "whole")
        with small_disk(folder / "disk") as place:
            tormented(name, place / "run", known[name], luck, found, moments)
    return found


def tormented(
    name: str, out: Path, whole: tuple[dict[str, Any], float], luck: random.Random, found: Kills, moments: Any
) -> None:
    """One run that is killed up to three times and then left alone; what came of it is added to `found`."""
    expected, seconds = whole
    kills = 0
    for _ in range(luck.randint(1, 3)):
        moment = luck.choice(moments)
        status = killed(name, out, moment, seconds, luck)
        text = printed(out)
        if status == -signal.SIGKILL:
            kills += 1
            found.moments[moment] += 1
        elif status == 2 and moment == "full disk" and "Traceback" not in text:
            found.full_disks += 1
        elif status != 0:
            found.wrong.append(f"{name} ended with status {status}: {text[-500:]}")
        if newest_good(out / "checkpoints")[1]:
            found.wrong.append(f"{name}: a kill left a checkpoint that is named and damaged")
    finish(name, out)
    differs = unequal(outcome(out), expected)
    found.runs.add(name)
    found.kills += kills
    found.resumed_exact += 0 if differs else kills
    if differs:
        found.wrong.append(f"{name}, killed {kills} times, differs in {differs}")


def killed(name: str, out: Path, moment: str, seconds: float, luck: random.Random) -> int:
    """Start or resume a run and kill it at such a moment; its exit status (it may have come to its end before)."""
    if moment == "anywhere":
        process = start(name, out)
        process.join(luck.uniform(0.05, 0.95) * seconds)
    elif moment == "checkpoint":
        process = start(name, out, kill_at=luck.randint(1, 40))
        process.join(600)
    else:
        full = full_disk(out, luck)
        process = start(name, out, kill_at=luck.randint(1, 6), full=full)
        process.join(600)
        if full.ballast is not None:
            Path(full.ballast).unlink(missing_ok=True)
    if process.is_alive():
        process.kill()
        process.join()
    return int(process.exitcode)


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A disk of 64 MB where this process may mount one, else an ordinary folder."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
        shutil.rmtree(place)


def full_disk(out: Path, luck: random.Random) -> Full:
    """Room for a part of a checkpoint, or for a little more than one."""
    size = max((_size(one) for one in checkpoints(out / "checkpoints")), default=30_000)
    small = shutil.disk_usage(out.parent).total < 70e6
    return Full(int(luck.uniform(0.05, 1.2) * size), str(out.parent / "ballast") if small else None)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def states() -> dict[str, Any]:
    """Parts of the state of every method and variant: registered, covered, and what evolves without being saved."""
    registered, covered = 0, 0
    unsaved: list[str] = []
    inexact: list[str] = []
    for name in names():
        with tempfile.TemporaryDirectory(prefix="redistill-states-") as folder:
            found = examine(name, Path(folder))
        registered, covered = registered + len(found.registered), covered + len(found.covered)
        unsaved += [f"{name}: {what}" for what in found.unsaved]
        inexact += [f"{name}: {found.differs}"] if found.differs else []
    return {
        "states_registered": registered, "states_covered": covered, "states_unsaved": unsaved, "methods": len(slugs()),
        "runs_resumed": len(names()), "runs_inexact": inexact,
    }  # fmt: skip


def figures(quick: bool = False) -> dict[str, Any]:
    """All figures of exact resume. Quick: 6 kills, 300 inputs and 100 steps instead of 50, 4,000 and 2,000."""
    with tempfile.TemporaryDirectory(prefix="redistill-kills-") as folder:
        kills = campaign(6 if quick else 50, Path(folder))
    damaged = fuzz(300 if quick else 4000)
    return {
        "kills": kills.kills, "resumed_exact": kills.resumed_exact, "kills_by_moment": dict(kills.moments),
        "runs_killed": len(kills.runs), "full_disks_survived": kills.full_disks, "resume_wrong": kills.wrong,
        "inputs_fuzzed": damaged.inputs, "inputs_refused": damaged.refused, "crashes": len(damaged.crashes),
        "crashed": damaged.crashes, "damage_accepted": damaged.accepted,
        **states(), **hygiene(100 if quick else 2000),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(figures(parser.parse_args().quick), indent=1))
