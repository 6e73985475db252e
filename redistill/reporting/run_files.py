"""What a run folder holds, read for its report. An unfinished run is read as far as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistill.errors import UserError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The files of a run. `result` is None while the run is not finished; `steps` are the rows of metrics.jsonl that are
    updates, `evaluations` {label: numbers} in their order."""

    path: Path
    config: Record
    versions: Record
    result: Record | None
    steps: Sequence[Record]
    evaluations: Mapping[str, Record]
    samples: Sequence[Record]
    credit: Sequence[Record]
    alarms: Sequence[Record]
    views: Mapping[str, str]


def read_run(path: Path) -> RunFiles:
    """Read a run folder. UserError where it is none, or where a file in it cannot be read."""
    if not path.is_dir():
        raise UserError(f"run folder {path} does not exist")
    config = _json(path / "config.json")
    if config is None:
        raise UserError(f"{path} is not the folder of a run: it has no config.json")
    result = _json(path / "result.json")
    metrics = _lines(path / "metrics.jsonl")
    evaluations = {row["evaluation"]: row for row in metrics if "evaluation" in row}
    if result is not None:  # with the outcome of each prompt, which the log leaves out
        evaluations |= result["evaluations"]
    views = {file.stem: file.read_text(errors="replace") for file in sorted(path.glob("views*.txt"))}
    return RunFiles(
        path, config, _json(path / "versions.json") or {}, result, [row for row in metrics if "evaluation" not in row],
        evaluations, _lines(path / "samples.jsonl"), _lines(path / "credit.jsonl"), _lines(path / "alarms.jsonl"), views,
    )  # fmt: skip


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file; a last line that a killed run has left unfinished is not one."""
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").split("\n")
    whole, last = lines[:-1], lines[-1]
    try:
        return [json.loads(line) for line in whole if line] + _whole(last)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def _whole(line: str) -> list[dict[str, Any]]:
    try:
        return [json.loads(line)] if line else []
    except ValueError:
        return []
