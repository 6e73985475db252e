"""The survey's taxonomy of on-policy distillation (arXiv 2604.00626), read from the registered methods themselves.

A method is a record of choices: who samples, what the signal is, who teaches and how much of it is seen, which divergence at
each step over which outcomes, and how steps are added up. Defaults of options tell most of them; `Method.taxonomy` tells
what they do not.
"""

from __future__ import annotations

import inspect
import re

from redistill.catalogue import marks
from redistill.core.method import Method, registered
from redistill.core.options import options_of
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights

COLUMNS = ("method", "year", "signal", "access", "granularity", "divergence", "sampler", "innovation")
"""Columns of the survey's table: the three axes, the divergence, who samples, what is new."""
NONE = "-"


def taxonomy() -> list[dict[str, str]]:
    """One record a method, in the order of their slugs."""
    import redistill.methods  # noqa: F401

    known = marks()
    return [
        record(cls) | {"verdict": known.get(slug, {}).get("evidence", "none")} for slug, cls in registered().items()
    ]


def record(cls: type[Method]) -> dict[str, str]:
    """What a method chooses in each respect, by its defaults."""
    of_type = {kind: _defaults(cls, kind) for kind in (DivergenceKind, Support, TeacherWeights, Normaliser)}
    year = re.search(r"arXiv (\d\d)\d\d\.", cls.paper)
    found = {
        "method": cls.slug,
        "title": cls.title,
        "family": cls.family,
        "year": f"20{year.group(1)}" if year else NONE,
        **{axis: str(cls.axes.get(axis, NONE)) for axis in ("signal", "access", "granularity")},
        "divergence": ", ".join(of_type[DivergenceKind].values()) or NONE,
        "sampler": _sampler(cls),
        "teacher": ", ".join(
            f"{value}" if name == "teacher" else f"{name}: {value}" for name, value in of_type[TeacherWeights].items()
        )
        or NONE,
        "support": ", ".join(of_type[Support].values()) or ("full" if of_type[DivergenceKind] else NONE),
        "normaliser": ", ".join(of_type[Normaliser].values()) or NONE,
        "innovation": cls.title,
        "objective": cls.objective,
    }
    return found | dict(cls.taxonomy)


def _defaults(cls: type[Method], kind: type) -> dict[str, str]:
    """Defaults of the options of a kind, by name; an external teacher has none and is required."""
    return {
        name: "external" if spec.default is None else str(spec.default)
        for name, spec in options_of(cls).items()
        if spec.type == kind or spec.type == kind | None
    }


def _sampler(cls: type[Method]) -> str:
    """Who writes what is trained on: the student, unless the method collects in its own way and says how."""
    if cls.collect is Method.collect:
        return "student"
    first = (inspect.getdoc(cls.collect) or "").partition(".")[0]
    return first[:1].lower() + first[1:] if first[1:2].islower() or first[1:2] == " " else first
