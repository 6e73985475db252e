"""Judging programs: each in a jail of its own that was made before it was needed, several at a time.

A program is sent, then one input at a time, and what comes back is compared here with what was expected. Nothing that a jail says
can be a verdict: it says outputs, and an output is right or it is not. A jail is used for one program and then ended, so no
program can reach another one's. A worker thread starts its own jails (a jail dies with the thread that started it).
"""

from __future__ import annotations

import atexit
import functools
import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from redistill.sandbox import plain
from redistill.sandbox.jail import Limits
from redistill.sandbox.process import Ended, Flood, Jail, Late, refuse_without_jail, started

Input = tuple[tuple[Any, ...], dict[str, Any]] | str
"""Positional and named arguments of one call, or a standard input."""


@dataclass(frozen=True)
class Case:
    """One input and the output that is right: plain values, or for a standard input the standard output."""

    given: Input
    expected: Any
    private: bool = False
    """Whether feedback keeps its input and output to itself."""


@dataclass(frozen=True)
class Program:
    """A source, the function that its tests call (a name or Class.method; None: it is run on a standard input), its tests."""

    source: str
    function: str | None
    tests: Sequence[Case]
    all_tests: bool = False
    """Go on after a failed test, to count how many pass."""


@dataclass(frozen=True)
class Failure:
    """The first thing that went wrong. `kind`: "wrong" (output), "error" (exception), "time", "ended" (the interpreter), "odd"
    (no plain output)."""

    kind: str
    told: str = ""
    """The error's message, or what ended or was odd."""
    error: str = ""
    """The name of the exception's type."""
    line: int | None = None
    """The line of the program (from 1) where it happened."""
    case: Case | None = None
    """The test; None when the program failed before the first."""
    actual: str | None = None
    """What came out instead, as text."""


@dataclass(frozen=True)
class Outcome:
    """How many tests passed, of how many, the first failure (None when all passed), and the outputs (coded, see plain.py) of
    the tests that had one."""

    passed: int
    total: int
    failure: Failure | None = None
    outputs: Sequence[plain.Coded] = ()


def _ended(end: Ended) -> Failure:
    if end.signal == 24:  # SIGXCPU, and the SIGKILL that follows where it is ignored
        return Failure("time")
    if end.signal is not None:
        return Failure("ended", f"signal {end.signal}")
    return Failure("ended", f"exit status {end.status}")


def _failure(said: Any, case: Case | None) -> Failure | None:
    """The failure that a line tells, None for an output. Raises plain.Malformed for a line of no known shape."""
    if not isinstance(said, dict) or len(said) != 1:
        raise plain.Malformed
    ((kind, inner),) = said.items()
    if kind == "odd" and isinstance(inner, str):
        return Failure("odd", inner[:200], case=case)
    if kind == "error":
        shape = [type(part) for part in inner] if isinstance(inner, list) else []
        if shape not in ([str, str, int], [str, str, type(None)]):
            raise plain.Malformed
        return Failure("error", inner[1][:500], error=inner[0][:80], line=inner[2], case=case)
    return None


def converse(jail: Jail, program: Program) -> Outcome:
    """Send the program and its inputs and compare what comes back. The jail is spent afterwards."""
    deadline = time.monotonic() + jail.limits.wall
    passed, first, case = 0, None, None
    total = len(program.tests)
    outputs: list[plain.Coded] = []
    try:
        said = plain.read(
            jail.line(deadline, repr((program.source, program.function)).encode("utf-8", "backslashreplace"))
        )
        if said != "loaded":
            return Outcome(0, total, _failure(said, None) or Failure("odd", "an answer before the first question"))
        for case in program.tests:
            line = jail.line(deadline, repr(case.given).encode("utf-8", "backslashreplace"))
            failure = _judge(plain.read(line), case, outputs)
            passed += failure is None
            first = first or failure
            if failure is not None and not program.all_tests:
                break
        return Outcome(passed, total, first, outputs)
    except Late:
        failure = Failure("time", case=case)
    except Flood:
        failure = Failure(
            "odd", f"more than {jail.limits.output} characters, or output that nobody asked for", case=case
        )
    except plain.Malformed:
        failure = Failure("odd", "something that is no output", case=case)
    except Ended as end:
        found = _ended(end)
        failure = Failure(found.kind, found.told, case=case)
    return Outcome(passed, total, first or failure, outputs)


def _judge(said: Any, case: Case, outputs: list[plain.Coded]) -> Failure | None:
    """What is wrong with an answer, None when nothing is; an output is added to `outputs`."""
    failure = _failure(said, case)
    if failure is not None:
        return failure
    if isinstance(case.given, str):
        text = said.get("text")
        if not isinstance(text, str):
            raise plain.Malformed
        outputs.append(text)
        return None if plain.same_text(case.expected, text) else Failure("wrong", case=case, actual=text)
    if "value" not in said:
        raise plain.Malformed
    got = plain.check(said["value"])
    outputs.append(got)
    if plain.equal(plain.coded(case.expected), got):
        return None
    return Failure("wrong", case=case, actual=plain.show(got))


@dataclass
class Pool:
    """`workers` threads (0: one more than cores), each with a jail that is ready. `judge` may be called from any thread."""

    limits: Limits = Limits()
    unsafe: bool = False
    workers: int = 0
    _jobs: queue.SimpleQueue[tuple[Program, Future[Outcome]] | None] = field(default_factory=queue.SimpleQueue)
    _threads: list[threading.Thread] = field(default_factory=list)
    _jails: set[Jail] = field(default_factory=set)

    def __post_init__(self) -> None:
        refuse_without_jail(unsafe=self.unsafe)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = self.workers or cores + 1  # one more than cores: starting and ending a jail has waits in it
        self._threads = [threading.Thread(target=self._work, name="sandbox", daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def judge(self, programs: Sequence[Program]) -> list[Outcome]:
        """The outcome of each program, in their order."""
        futures: list[Future[Outcome]] = [Future() for _ in programs]
        for program, future in zip(programs, futures):
            self._jobs.put((program, future))
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads and every jail; the pool judges no more."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(5.0)
        for jail in list(self._jails):
            jail.kill()

    def _work(self) -> None:
        spare: Jail | None = None
        while (job := self._jobs.get()) is not None:
            program, future = job
            try:
                jail = spare if spare is not None and spare.alive() else self._next()
                spare = None
                try:
                    future.set_result(converse(jail, program))
                finally:
                    self._end(jail)
                spare = self._next()
            except BaseException as error:
                if not future.done():
                    future.set_exception(error)
        if spare is not None:
            self._end(spare)

    def _next(self) -> Jail:
        jail = started(self.limits, unsafe=self.unsafe)
        self._jails.add(jail)
        return jail

    def _end(self, jail: Jail) -> None:
        jail.kill()
        self._jails.discard(jail)


@functools.lru_cache(maxsize=8)
def _shared(limits: Limits, unsafe: bool, process: int) -> Pool:
    """One pool for each set of limits; a process that was forked off makes its own."""
    pool = Pool(limits, unsafe)
    atexit.register(pool.close)
    return pool


def judge(programs: Sequence[Program], limits: Limits = Limits(), *, unsafe: bool = False) -> list[Outcome]:
    """The outcome of each program, judged by a pool that all callers with the same limits share. Raises UserError where
    there can be no jail and `unsafe` is not set."""
    return _shared(limits, unsafe, os.getpid()).judge(programs)
