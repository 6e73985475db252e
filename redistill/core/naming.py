"""Names with options, as tasks and models are written: `digits:train=500,noise=0.3`, `mlp:width=64`. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from redistill.core.options import build, options_of
from redistill.errors import UserError, nearest

T = TypeVar("T")


def named(text: str, what: str, kinds: Mapping[str, type[T]]) -> tuple[str, T]:
    """Read "name:key=value,key=value" into (name, the options of that kind); a UserError names what is wrong."""
    name, _, rest = text.partition(":")
    name = name.strip()
    if name not in kinds:
        raise UserError(f"{what} {name!r} is unknown{nearest(name, kinds)}")
    given: dict[str, str] = {}
    known = options_of(kinds[name])
    for part in (piece.strip() for piece in rest.split(",")) if rest.strip() else ():
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"{what} {name!r} option {part!r} is not of the form key=value")
        if key not in known:
            raise UserError(f"{what} {name!r} has no option {key!r}{nearest(key, known)}")
        if key in given:
            raise UserError(f"{what} {name!r} option {key!r} is given twice: {given[key]} and {value.strip()}")
        given[key] = value.strip()
    return name, build(kinds[name], given)
