"""Redistill: post-training in which the teacher is often the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finished:
    """A finished run: what result.json says, and its folder."""

    result: dict[str, Any]
    folder: Path


def run(slug: str, *, out: Path | None = None, **settings: Any) -> Finished:
    """Run a method as `redistill run` does; settings are those of the run and of the method. UserError for a mistake."""
    from redistill.build import prepare
    from redistill.reporting.terminal import reporter

    made = prepare(slug, settings, out=out, report=reporter(quiet=True, silent=True))
    try:
        return Finished(made.go(False), made.folder.path)
    finally:
        made.close()
