"""Optional trackers: a run's numbers in TensorBoard, Weights & Biases or Trackio as well as in its folder.

A tracker listens to the same events as the terminal and gives nothing back, so it cannot change a run. Its package is
imported only when it is asked for. A resumed run goes on in the same tracker run, and no step is in it twice.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import uuid
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

from redistill.core.loop import Report
from redistill.core.runs import RunFolder
from redistill.errors import UserError

PROJECT = "redistill"


class Tracker(Protocol):
    """What all trackers have in common."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add numbers to a step."""
        ...

    def finish(self, done: bool) -> None:
        """Write what is left; `done` tells a run that has ended from one that was broken off."""
        ...


class TensorBoard:
    """Event files in <run folder>/tensorboard; those of a resumed run hide the steps that it does again."""

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], at: int, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder.path / "tensorboard"), purge_step=at + 1)
        if at == 0:
            self.writer.add_text("settings", "\n".join(f"    {key} = {value}" for key, value in config.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars at once: a run may be killed at any moment."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def finish(self, done: bool) -> None:
        """Close the event file."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases, whose id stays the same over resumes (WANDB_MODE=offline needs no account)."""

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], at: int, name: str) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=PROJECT, name=folder.path.name, id=name, resume="allow", dir=str(folder.path), config=dict(config)
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add to the history."""
        self.run.log(dict(values), step=step)

    def finish(self, done: bool) -> None:
        """Upload or store what is left."""
        self.run.finish(exit_code=0 if done else 1)


class Trackio:
    """A run of Trackio, which keeps it on this machine (its dashboard: `trackio show`)."""

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], at: int, name: str) -> None:
        import trackio

        self.run: Any = trackio.init(
            project=PROJECT, name=f"{folder.path.name}-{name}", resume="allow", embed=False, config=dict(config)
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add to the run."""
        self.run.log(dict(values), step=step)

    def finish(self, done: bool) -> None:
        """Store what is left."""
        self.run.finish()


TRACKERS: Mapping[str, Callable[[RunFolder, Mapping[str, Any], int, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def check(kind: str) -> None:
    """Refuse a tracker whose package cannot be imported; "none" imports nothing."""
    if kind == "none":
        return
    try:
        import_module(kind)
    except ImportError:
        raise UserError(
            f"tracker={kind} needs the package {kind!r}, which cannot be imported: pip install redistill[trackers]"
        ) from None


def tracked(report: Report, kind: str, folder: RunFolder, record: Mapping[str, Any]) -> Report:
    """`report`, and a tracker beside it; just `report` for "none". `record` is what config.json says."""
    return report if kind == "none" else Tracking(report, kind, folder, record)


class Tracking:
    """Passes every event on and tells the tracker the numbers of steps and evaluations. A tracker that fails while the
    run is under way is left out with one warning: the numbers are in metrics.jsonl in any case."""

    def __init__(self, report: Report, kind: str, folder: RunFolder, record: Mapping[str, Any]) -> None:
        self.report, self.kind, self.folder = report, kind, folder
        self.config = {"method": record["method"], **record["options"], **record["run"]}
        # TensorBoard can take steps back; the others keep what they have, and a run that is done again gives the same.
        self.logged = set() if kind == "tensorboard" else _logged(folder)
        self.tracker: Tracker | None = None

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """One event."""
        self.report(event, facts)
        if event == "start":
            self._start(facts["at"])
        elif event == "step":
            self._tell(event, "train", facts)
        elif event == "evaluated":
            self._tell(event, "eval", facts)
        elif event in ("finished", "close"):
            self._finish(event == "finished")

    def _start(self, at: int) -> None:
        try:
            with _aside():
                self.tracker = TRACKERS[self.kind](self.folder, self.config, at, self._name())
        except Exception as error:  # whatever three other packages raise: no account, no network, no room
            raise UserError(f"tracker={self.kind} could not be started: {_one_line(error)}") from error

    def _name(self) -> str:
        """The id of this folder's run in the tracker, made once."""
        names: dict[str, str] = self.folder.read("tracker.json") or {}
        if self.kind not in names:
            names[self.kind] = uuid.uuid4().hex[:12]
            self.folder.write("tracker.json", names)
        return names[self.kind]

    def _tell(self, event: str, group: str, facts: Mapping[str, Any]) -> None:
        step = facts["step"]
        if self.tracker is None or (event, step) in self.logged:
            return
        self.logged.add((event, step))
        values = {f"{group}/{key}": value for key, value in numbers(facts).items()}
        try:
            with _aside():
                self.tracker.log(values, step)
        except Exception as error:
            self.tracker = None
            self._warn(f"stopped at step {step}", error)

    def _finish(self, done: bool) -> None:
        tracker, self.tracker = self.tracker, None
        if tracker is None:
            return
        try:
            with _aside():
                tracker.finish(done)
        except Exception as error:
            self._warn("could not be closed", error)

    def _warn(self, what: str, error: Exception) -> None:
        text = f"tracker={self.kind} {what} ({_one_line(error)}); metrics.jsonl has everything"
        self.report("warning", {"text": text})


def numbers(facts: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of an event, but for the counters that place it."""
    return {
        key: float(value)
        for key, value in facts.items()
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and key not in ("step", "of")
    }


def _logged(folder: RunFolder) -> set[tuple[str, int]]:
    """(event, step) of what the run in this folder has told already: it writes its log before it tells."""
    path = folder.path / "metrics.jsonl"
    found = set()
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        found.add(("evaluated" if "evaluation" in record else "step", int(record["step"])))
    return found


def _aside() -> contextlib.AbstractContextManager[Any]:
    """What a tracker prints goes to standard error: standard output is the run's own (with --json, JSON only)."""
    return contextlib.redirect_stdout(sys.stderr)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
