"""What `list` and `show` say, read from the methods themselves and from marks that a command generates."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from redistill.build import method_class
from redistill.core.method import registered
from redistill.core.options import options_of

ROOT = Path(__file__).parent
MARKS = ROOT / "assets" / "marks.json"
"""Written by scripts/marks.py from test results, recipes and evidence files; never by hand."""


def marks() -> dict[str, dict[str, Any]]:
    """The generated marks by slug."""
    found: dict[str, dict[str, Any]] = json.loads(MARKS.read_text()) if MARKS.is_file() else {}
    return found


def rows() -> list[dict[str, Any]]:
    """One row for each registered method: the array of `redistill list --json`."""
    import redistill.methods  # noqa: F401

    known = marks()
    none = {"objective": False, "recipe": False, "evidence": "none", "scale": False}
    return [
        {
            "slug": slug, "title": cls.title, "paper": cls.paper, "family": cls.family, "axes": dict(cls.axes),
            **{**none, **known.get(slug, {})},
        }
        for slug, cls in registered().items()
    ]  # fmt: skip


def describe(slug: str) -> dict[str, Any]:
    """Everything `redistill show` prints."""
    cls = method_class(slug)
    options = [
        {"name": o.name, "default": str(o.default), "range": o.range, "meaning": o.meaning}
        for o in options_of(cls).values()
    ]
    row = next(row for row in rows() if row["slug"] == slug)
    return {
        **row, "idea": inspect.cleandoc(cls.__doc__ or ""), "objective": cls.objective, "options": options,
        "run_defaults": dict(cls.run_defaults), "says_does": [list(pair) for pair in cls.says_does],
        "evidence": row["evidence"], "axes": dict(cls.axes),
    }  # fmt: skip
