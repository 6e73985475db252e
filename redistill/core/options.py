"""Options: fields of a frozen dataclass with a meaning and a range, read strictly from text or TOML. Torch-free.

A method's options and the run's settings are both declared this way, so `show`, `--help`, validation and the test that every
option is read all come from the same place.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from redistill.core.budget import Budget
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.errors import UserError, nearest

SPECS = (DivergenceKind, Support, TeacherWeights, Normaliser, Budget)
T = TypeVar("T")


def option(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """Declare an option: its default, what it means, and its range (`low`/`high` inclusive, `above` exclusive)."""
    return field(
        default=default,
        metadata={"meaning": meaning, "low": low, "high": high, "above": above, "choices": tuple(choices)},
    )


@dataclass(frozen=True)
class Option:
    """One declared option, resolved for reading and printing."""

    name: str
    type: Any
    default: Any
    meaning: str
    low: float | None
    high: float | None
    above: float | None
    choices: tuple[str, ...]

    @property
    def range(self) -> str:
        """The range in words, for help and errors; empty when anything of the type goes."""
        if self.choices:
            return " | ".join(self.choices)
        parts = [f">= {self.low:g}"] if self.low is not None else []
        parts += [f"> {self.above:g}"] if self.above is not None else []
        parts += [f"<= {self.high:g}"] if self.high is not None else []
        return " and ".join(parts)


def options_of(cls: type) -> dict[str, Option]:
    """The declared options of a dataclass, by name, in order."""
    hints = typing.get_type_hints(cls)
    found = {}
    for item in dataclasses.fields(cls):
        if "meaning" in item.metadata:
            found[item.name] = Option(name=item.name, type=hints[item.name], default=item.default, **item.metadata)
    return found


def _inner(kind: Any) -> tuple[Any, bool]:
    if isinstance(kind, types.UnionType):
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return inner[0], True
    return kind, False


def _typed(name: str, kind: Any, value: Any) -> Any:
    text = str(value).strip()
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{name}={value!r} is not true or false")
        return text.lower() == "true"
    if kind in (int, float):
        if isinstance(value, bool):
            raise UserError(f"{name}={value!r} is not a number")
        try:
            number = float(text)
        except ValueError:
            raise UserError(f"{name}={value!r} is not a {'whole number' if kind is int else 'number'}") from None
        if not math.isfinite(number):
            raise UserError(f"{name}={value!r} is not a finite number")
        if kind is float:
            return number
        if number != int(number):
            raise UserError(f"{name}={value!r} is not a whole number")
        return int(text) if text.lstrip("+-").isdecimal() else int(number)  # a float has 53 bits, a seed may have more
    if kind in SPECS:
        return value if isinstance(value, kind) else kind.parse(text)
    if kind is str:
        return str(value)
    raise TypeError(f"option {name} has a type that cannot be read: {kind}")


def read(spec: Option, value: Any) -> Any:
    """Turn text (or a TOML value) into the option's type and check its range; raise a UserError that names the key."""
    kind, optional = _inner(spec.type)
    if optional and (value is None or str(value).strip().lower() == "none"):
        return None
    typed = _typed(spec.name, kind, value)
    if spec.choices and typed not in spec.choices:
        raise UserError(f"{spec.name}={value!r} is not a choice{nearest(str(typed), spec.choices)}")
    outside = (
        (spec.low is not None and typed < spec.low)
        or (spec.high is not None and typed > spec.high)
        or (spec.above is not None and typed <= spec.above)
    )
    if outside:
        raise UserError(f"{spec.name}={value} is out of range: it must be {spec.range}")
    return typed


def build(cls: type[T], given: Mapping[str, Any]) -> T:
    """Make `cls` from given values, each read strictly; an unknown key is an error that names the nearest option."""
    known = options_of(cls)
    for name in given:
        if name not in known:
            raise UserError(f"{name!r} is not an option of {cls.__name__}{nearest(name, known)}")
    return cls(**{name: read(known[name], value) for name, value in given.items()})


def plain_values(instance: Any) -> dict[str, Any]:
    """Options of an instance as JSON values (specs as the text a user would write), for the run folder."""
    values = {name: getattr(instance, name) for name in options_of(type(instance))}
    return {name: str(value) if isinstance(value, SPECS) else value for name, value in values.items()}
