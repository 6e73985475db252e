"""Does a checkpoint hold everything that evolves? Every registered method runs twice, once stopped and resumed, and whatever
the two runs can reach is compared: what differs evolved and is not saved."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from redistill.build import prepare
from redistill.core.loop import Run
from redistill.core.state import Piece
from redistill.core.stopping import Interrupted, Stop

from benchmarks.evolution import Mark, differences, fingerprints, of_the_process
from benchmarks.resume_runs import outcome, settings_of, unequal

LOGS = ("metrics", "samples", "alarms", "credit")
OUTSIDE = (
    "folder",
    "report",
    "stop",
    "state",
    "log_file",
    "samples",
    "alarms",
    "credit",
    "metrics",
    "saved",
    "config",
    "recorder",
    "kept",
)
"""Attributes of a run that are not looked into: where it writes and whom it tells; the logs (compared as parts); a step's own
numbers; and the moment of the last save."""
EPHEMERAL: Mapping[str, str] = {
    r"(method|stages\[\d+\]\.method)\.cache\b.*": "a function of its keys: written anew where it is missing",
    r"domain\.(step|calls)": "begin_step sets them",
    r"domain\.judge\.(sampled_in|seconds|slow)": "time is no two times the same",
    r"domain\.(omitted|recorded)\b.*": "begin_step clears them",
    r"domain\.shown\b.*": "the grid beside a saved model; made again where it is missing",
    r"cursor\.spent\['seconds'\]": "time is no two times the same",
    r".*\['lr'\]": "every update sets the optimiser's rate from the player's, the warm-up and the schedule",
    r".*\.training": "every forward sets it",
}
"""Paths that may differ, as patterns, and why that is right."""
PROCESS: Mapping[str, str] = {
    "redistill.text.files._hashed": "hashes by file, size and time: a cache",
    "redistill.tasks.worker._CLIENT": "the helper process: every call is answered from its arguments",
    "redistill.text.decoder._kept": "decoders made of weights, kept while these stay the same: a cache",
    "redistill.embodied.tasks._TASKS": "simulators: every update plays whole episodes from keyed starts",
}
"""What may change in the process, and why nothing needs to be saved of it."""


@dataclass
class States:
    """What was found of one run."""

    registered: list[str] = field(default_factory=list)
    """Parts of its state that hold something."""
    covered: list[str] = field(default_factory=list)
    """Those that the resumed run had otherwise before it loaded them, and has alike at the end."""
    evolved: int = 0
    trained: bool = False
    """Whether the weights changed: what stands still proves nothing."""
    unsaved: list[str] = field(default_factory=list)
    """Class and path of what evolved and was not saved."""
    differs: list[str] = field(default_factory=list)
    """Files of the run's folder that are not the same bit for bit (but for seconds)."""


def examine(name: str, folder: Path, **changed: Any) -> States:
    """Run `name` to its end; run it again, stopped after some step and resumed by a run whose numbers were all moved; compare
    everything that the two can reach, and everything that they wrote."""
    whole = made(name, folder / "whole", **changed)
    found, roots = States(), [fingerprints(reachable(whole)), fingerprints(of_the_process())]
    first = digests(whole)
    going(whole, False)
    later = fingerprints(of_the_process())
    stop = Stop()
    after = random.Random(name).randint(1, max(1, whole.cursor.step - 1))

    def ask(event: str, facts: Mapping[str, Any]) -> None:
        if event == "step" and facts["step"] == after:
            stop.number = signal.SIGTERM

    with contextlib.suppress(Interrupted):
        going(made(name, folder / "parts", report=ask, stop=stop, **changed), False)
    resumed = made(name, folder / "parts", resume=True, **changed)
    _move(resumed)
    moved = digests(resumed)
    going(resumed, True)
    found.differs = unequal(outcome(folder / "whole"), outcome(folder / "parts"))
    ends = digests(whole), digests(resumed)
    found.trained = ends[0]["player-student"] != first["player-student"]
    found.registered = [part for part, mark in ends[0].items() if mark is not None]
    found.covered = [part for part in found.registered if _covered(part, *ends, moved, found.differs)]
    one, other = fingerprints(reachable(whole)), fingerprints(reachable(resumed))
    marks = {**other, **one}
    found.evolved = len(differences(roots[0], one))
    found.unsaved = sorted(
        f"{marks[path].holder} at {path}" for path in differences(one, other) if not _may_differ(path)
    )
    found.unsaved += [
        f"the process at {path}" for path in sorted(roots[1].keys() & later.keys())
        if roots[1][path] != later[path] and not path.startswith(tuple(PROCESS))
    ]  # fmt: skip
    return found


def made(name: str, folder: Path, resume: bool = False, report: Any = None, stop: Any = None, **changed: Any) -> Run:
    """A run that has not begun."""
    slug, given = settings_of(name)
    quiet = report or (lambda event, facts: None)
    return prepare(slug, {**given, **changed}, out=folder, resume=resume, report=quiet, stop=stop)


def going(run: Run, resume: bool) -> None:
    """Run it to its end, or to where it is stopped, and close it."""
    try:
        run.go(resume)
    finally:
        run.close()


def digests(run: Run) -> dict[str, str | None]:
    """A fingerprint of each part of a run's state, but for its logs, whose lines tell seconds too."""
    logs = dict.fromkeys(LOGS, "log")
    return {name: logs.get(name) or _digest(part.state()) for name, part in run.state.parts.items()}


def _covered(part: str, whole: Any, resumed: Any, moved: Any, differs: list[str]) -> bool:
    if whole[part] == "log":
        return f"{part}.jsonl" not in differs
    return bool(whole[part] == resumed[part] != moved[part])


def reachable(run: Run) -> dict[str, Any]:
    """The roots of everything that a run owns."""
    return {name: value for name, value in vars(run).items() if name not in OUTSIDE}


def _may_differ(path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in EPHEMERAL)


@torch.no_grad()
def _move(fresh: Run) -> None:
    """Move every weight and copy, so that what comes back was loaded, not left."""
    tensors = [tensor for player in fresh.domain.players.values() for tensor in player.tensors.values()]
    tensors += [tensor for copy in fresh.domain.bank.copies.values() for tensor in copy.values()]
    for tensor in tensors:
        tensor.add_(1)


def _digest(piece: Piece) -> str | None:
    """A fingerprint of a part's state; None where it holds nothing."""
    if not (piece.tensors or piece.facts or any(piece.apart.values())):
        return None
    marks: dict[str, Mark] = fingerprints({"tensors": piece.tensors, "facts": piece.facts, "apart": piece.apart})
    timeless = sorted((path, mark) for path, mark in marks.items() if not path.endswith("['seconds']"))
    return hashlib.sha256(repr(timeless).encode()).hexdigest()
