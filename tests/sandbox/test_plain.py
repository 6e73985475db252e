"""Outputs as data: what is written in the jail, read here, compared and shown."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redistill.sandbox import inside, plain

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
KEYS = st.integers() | st.text() | st.booleans() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner) | st.sets(KEYS),
    max_leaves=12,
)


def sent(value: Any) -> Any:
    """A value as it comes out of a jail."""
    return plain.check(plain.read(inside.encode(value).encode()))


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_every_plain_value_equals_itself_after_the_journey(value: Any) -> None:
    assert plain.equal(plain.coded(value), sent(value))
    assert plain.show(sent(value))


def _python_equal(a: Any, b: Any) -> bool:
    """Python's own ==, with tuples as lists and NaN equal to itself."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_python_equal, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_python_equal(a[key], b[key]) for key in a)
    return bool(a == b)


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_equality_is_pythons(a: Any, b: Any) -> None:
    if _python_equal(a, b):
        assert plain.equal(plain.coded(a), sent(b))
    elif not any(isinstance(value, float) for value in (a, b)) and "float" not in repr(type(a)):
        close = json.dumps(plain.coded(a)).count(".") + json.dumps(plain.coded(b)).count(".")
        assert close or not plain.equal(plain.coded(a), sent(b))


@pytest.mark.parametrize(
    ("wanted", "got", "same"),
    [
        ([1, 2], (1, 2), True), ([1, 2], [2, 1], False), (1, 1.0, True), (1, True, True), (1, "1", False), (0, None, False),
        (0.3, 0.1 + 0.2, True), (0.3, 0.3001, False), (1e-7, 0.0, False), (3, 3.0000001, False), (float("nan"), float("nan"), True),
        (float("inf"), float("inf"), True), (float("inf"), 1e308, False), (1.5, 10**400, False), ({1: "a"}, {1.0: "a"}, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True), ({1, 2}, {2, 1}, True), ({1, 2}, [1, 2], False), ({(1, 2)}, {(1, 2)}, True),
        (b"ab", b"ab", True), (b"ab", "ab", False), ("", [], False), ([], {}, False), ([[]], [[], []], False), (None, None, True),
        ({"a": 1}, Counter("a"), True), ({"a": []}, defaultdict(list, a=[]), True), ({"a": 1}, OrderedDict(a=1), True),
        ([1, 2], namedtuple("P", "x y")(1, 2), True), (2, IntEnum("E", "one two").two, True), (frozenset({1}), {1}, True),
    ],
)  # fmt: skip
def test_equal(wanted: Any, got: Any, same: bool) -> None:
    assert plain.equal(plain.coded(wanted), sent(got)) is same


@pytest.mark.parametrize(
    "value", [object(), (x for x in ()), range(3), lambda: 1, 1j, iter([]), {"a": {1: object()}}, [[set, 1]]]
)
def test_what_is_no_plain_value_is_refused(value: Any) -> None:
    with pytest.raises(inside.Odd):
        inside.encode(value)


def test_depth_and_length_are_bounded() -> None:
    deep: list[Any] = []
    for _ in range(inside.DEEPEST + 1):
        deep = [deep]
    for value, room in ((deep, 10**6), ("x" * 101, 100), ([1] * 60, 100), (b"x" * 101, 100)):
        with pytest.raises(inside.Odd):
            inside.encode(value, room)
    assert inside.encode("x" * 98, 100) == '"' + "x" * 98 + '"'


HOSTILE_LINES = [
    b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"value":' + b"[" * 200 + b"]" * 200 + b"}", b"9" * 5000, b"nul", b'"' + b"\\" * 3,
    b'{"a":' * 500 + b"1" + b"}" * 500,
]  # fmt: skip


@pytest.mark.parametrize("line", HOSTILE_LINES)
def test_a_line_that_is_no_json_or_too_deep_is_malformed(line: bytes) -> None:
    with pytest.raises(plain.Malformed):
        plain.read(line)


@pytest.mark.parametrize(
    "value",
    [{}, {"dict": 1}, {"dict": [[1]]}, {"dict": [1]}, {"set": {"set": []}}, {"bytes": [1]}, {"dict": "ab"}, {"x": []},
     {"set": [], "dict": []}, [[{"value": 1}]], {"dict": [[1, {"oops": 2}]]}],
)  # fmt: skip
def test_shapes_that_encode_never_writes_are_malformed(value: Any) -> None:
    with pytest.raises(plain.Malformed):
        plain.check(value)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=60) | st.text(alphabet='{}[]",:0123456789.eE-tfnullrdicsbyav \\u', max_size=60).map(str.encode)
)
def test_any_line_is_read_compared_and_shown_or_malformed(line: bytes) -> None:
    try:
        got = plain.check(plain.read(line))
    except plain.Malformed:
        return
    assert plain.equal(plain.coded({"k": [1, 2.5, "x", None, {3}]}), got) in (True, False)
    assert plain.show(got)


def test_standard_output_is_compared_by_lines() -> None:
    assert plain.same_text("1 2\n3\n", "1 2  \n3\n\n\n")
    assert not plain.same_text("1 2\n3\n", "1  2\n3\n")
    assert not plain.same_text("1\n\n2", "1\n2")


def test_shown() -> None:
    assert (
        plain.show(plain.coded({"a": (1, [None, True]), 2: {3}, "b": b"x"}))
        == "{'a': [1, [None, True]], 2: {3}, 'b': b'x'}"
    )
    assert plain.show(plain.coded(set())) == "set()"
    assert len(plain.show("x" * 1000)) == plain.SHOWN
    assert plain.show("\ud800") == "'\\ud800'"
