"""Outputs of jailed programs as plain data: read, compared and shown in this process, and never evaluated.

What a jail sends is JSON in the shapes of `inside.encode`. It is read with limits on size and depth, and whatever has another shape
is no output. Equality is that of Python's `==` on plain values, but for three things: a list equals a tuple of the same items
(JSON has no tuples), a float equals the expected one within a relative 1e-6 (and an absolute 1e-9), and NaN equals NaN.
"""

from __future__ import annotations

import json
import math
from typing import Any

from redistill.sandbox.inside import DEEPEST, encode

SHOWN = 200
"""Characters of a value that feedback shows."""
RELATIVE, ABSOLUTE = 1e-6, 1e-9

Coded = Any
"""A value as `inside.encode` writes it, read as JSON."""


class Malformed(Exception):
    """A line that no honest `encode` writes."""


def coded(value: object) -> Coded:
    """A plain value of ours in the coded form. Raises inside.Odd for what is none."""
    return json.loads(encode(value))


def read(line: bytes) -> Any:
    """A line of JSON from a jail, checked to be at most 10 levels deeper than a value may be. Raises Malformed."""
    try:
        found = json.loads(line)
        _check_depth(found, DEEPEST + 10)
    except (ValueError, RecursionError) as error:
        raise Malformed from error
    return found


def _check_depth(value: Any, left: int) -> None:
    if left < 0:
        raise ValueError
    if isinstance(value, list):
        for item in value:
            _check_depth(item, left - 1)
    elif isinstance(value, dict):
        for item in value.values():
            _check_depth(item, left - 1)


def check(value: Any) -> Coded:
    """`value` if it has a shape that `encode` writes. Raises Malformed."""
    if isinstance(value, list):
        for item in value:
            check(item)
    elif isinstance(value, dict):
        kind = next(iter(value), "")
        inner: Any = value.get(kind)
        if len(value) != 1 or kind not in ("dict", "set", "bytes") or isinstance(inner, str) != (kind == "bytes"):
            raise Malformed
        if not isinstance(check(inner), (list, str)) or (kind == "dict" and not all(map(_is_pair, inner))):
            raise Malformed
    return value


def _is_pair(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2


def equal(wanted: Coded, got: Coded) -> bool:
    """Whether an output is the expected one (see the module's text). Both are checked coded values."""
    if isinstance(wanted, (bool, int, float)) or isinstance(got, (bool, int, float)):
        return _same_number(wanted, got)
    if isinstance(wanted, list) and isinstance(got, list):
        return len(wanted) == len(got) and all(map(equal, wanted, got))
    if isinstance(wanted, dict) and isinstance(got, dict):
        if wanted.keys() != got.keys() or "bytes" in wanted:
            return wanted == got
        if "set" in wanted:
            return _keys(wanted["set"]) == _keys(got["set"])
        ours, theirs = _by_key(wanted["dict"]), _by_key(got["dict"])
        return ours.keys() == theirs.keys() and all(equal(ours[key], theirs[key]) for key in ours)
    return type(wanted) is type(got) and bool(wanted == got)


def _same_number(wanted: Any, got: Any) -> bool:
    if not isinstance(wanted, (bool, int, float)) or not isinstance(got, (bool, int, float)):
        return False
    if isinstance(wanted, float) and not isinstance(got, bool):
        if math.isnan(wanted):
            return isinstance(got, float) and math.isnan(got)
        try:
            return math.isclose(wanted, got, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        except OverflowError:  # an int too large for a float
            return False
    return wanted == got


def _key(item: Coded) -> str:
    """A member of a set or a key of a dict as text: equal numbers (1, 1.0, True) give one text."""
    if isinstance(item, list):
        return "[" + ",".join(map(_key, item)) + "]"
    if isinstance(item, bool) or (isinstance(item, float) and item.is_integer()):
        return str(int(item))
    return json.dumps(item, sort_keys=True)


def _keys(items: list[Coded]) -> list[str]:
    return sorted(map(_key, items))


def _by_key(pairs: list[Coded]) -> dict[str, Coded]:
    return {_key(key): value for key, value in pairs}


def value(got: Coded) -> Any:
    """A coded value as a Python value; lists stay lists. Raises ValueError for what JSON cannot say (sets, bytes, other keys
    than text)."""
    if isinstance(got, list):
        return [value(item) for item in got]
    if not isinstance(got, dict):
        return got
    pairs = got.get("dict")
    if pairs is None or not all(isinstance(key, str) for key, _ in pairs):
        raise ValueError("not a JSON value")
    return {key: value(item) for key, item in pairs}


def same_text(wanted: str, got: str) -> bool:
    """Whether two standard outputs agree: line by line, without white space at the ends of lines and blank lines at the end."""
    return _lines(wanted) == _lines(got)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def show(value: Coded, room: int = SHOWN) -> str:
    """A coded value as Python would write it, cut to `room` characters."""
    text = _written(value)
    return text if len(text) <= room else text[: room - 3] + "..."


def _written(value: Coded) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    if not isinstance(value, dict):
        return repr(value)
    ((kind, inner),) = value.items()
    if kind == "bytes":
        return repr(inner.encode("latin-1", "replace"))
    if kind == "dict":
        return "{" + ", ".join(f"{_written(key)}: {_written(item)}" for key, item in inner) + "}"
    return "{" + ", ".join(map(_written, inner)) + "}" if inner else "set()"
