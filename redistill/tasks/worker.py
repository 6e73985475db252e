"""One helper process beside the run that makes and scores reasoning-gym items and compares formulas.

Why a process: some generators order their items by Python's string hash, so the process has PYTHONHASHSEED=0 and
makes the same item on every machine and after every resume; generators print, and set the decimal precision of their
thread; sympy can take for ever on a hostile formula, and a process can be stopped where a thread cannot. It is not a
sandbox: what it is given from a model's reply is checked first (see catalog.py). A second such process calls a user's own
verifier (users.py), which may hang on a model's text as well.

The time limit of an operation is processor time, so that a verdict does not depend on what else the machine is doing; the
kernel ends the process when it is used up, whatever it is in. Memory is limited too. A process that only waits is ended
by the clock, PATIENCE times later.

One JSON line is asked, one is answered. Safe to call from any thread, and after a fork (a fork starts its own).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

ANSWER_SECONDS = 5.0
"""Processor seconds for judging one answer; a slower one is given up (reward 0, with feedback that says so)."""
MAKE_SECONDS = 120.0
"""Processor seconds for making one item; by the clock for the process to start."""
PATIENCE = 12.0
"""By the clock an operation may take this many times its limit (at most two minutes more)."""
MEMORY = 4 * 2**30
"""Bytes of address space of the process; beyond it an operation fails with MemoryError."""


class WorkerTimeout(Exception):
    """The helper process did not answer in time; it was stopped and the next call starts a new one."""


class WorkerError(Exception):
    """What was asked raised in the helper process; the text is the error's own."""


class _Client:
    """The parent's side: a lazily started process behind a lock. `kind` says what it serves (see KINDS)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._buffer = b""

    def call(self, operation: str, seconds: float, **arguments: Any) -> Any:
        """Answer of `operation`, within `seconds`. Raises WorkerTimeout or WorkerError. A process that died is
        replaced once."""
        line = json.dumps({"do": operation, "seconds": seconds, **arguments}).encode() + b"\n"
        if self._owner != os.getpid():
            self._lock, self._process = threading.Lock(), None
        with self._lock:
            for attempt in (0, 1):
                try:
                    if self._process is None or self._process.poll() is not None:
                        self._start()
                    reply = self._exchange(line, seconds)
                    break
                except (OSError, EOFError):
                    self.stop()
                    if attempt:
                        raise WorkerTimeout(f"the helper process died while doing {operation}") from None
                except WorkerTimeout:
                    raise
                except BaseException:  # broken off: the answer that comes now would be taken for that of the next call
                    self.stop()
                    raise
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply["ok"]

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "redistill.tasks.worker", self.kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        self._owner, self._buffer = os.getpid(), b""
        self._read(MAKE_SECONDS)

    def _exchange(self, line: bytes, seconds: float) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        reply = self._read(_clock(seconds))
        if reply.get("ended") in (signal.SIGPROF, signal.SIGALRM):
            raise WorkerTimeout(f"no answer within {seconds:g} seconds")
        if "ended" in reply:
            raise EOFError
        return reply

    def _read(self, seconds: float) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self.stop()
                    raise WorkerTimeout(f"no answer within {seconds:g} seconds")
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    raise EOFError
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def stop(self) -> None:
        """End the process if this one started it."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # an unsent line cannot be flushed to a process that is gone
                    continue


def _clock(seconds: float) -> float:
    """Seconds by the clock for an operation that has `seconds` of processor time."""
    return min(PATIENCE * seconds, seconds + 120.0)


_CLIENT, _USERS = _Client("catalog"), _Client("users")
atexit.register(_CLIENT.stop)
atexit.register(_USERS.stop)


def call(operation: str, seconds: float, **arguments: Any) -> Any:
    """Ask the helper process; see `_Client.call`. Arguments and answer are JSON values."""
    return _CLIENT.call(operation, seconds, **arguments)


def call_users(operation: str, seconds: float, **arguments: Any) -> Any:
    """The same for the process in which users' own verifiers run."""
    return _USERS.call(operation, seconds, **arguments)


def _answer(request: dict[str, Any], operations: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    operation, seconds = request.pop("do"), request.pop("seconds")
    try:
        # The default action of both signals ends the process, whatever it is in; the second one also when its parent is gone.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(int(_clock(seconds)) + 2)
        return {"ok": operations[operation](**request)}
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}" if str(error) else type(error).__name__}
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _operations(kind: str) -> Mapping[str, Callable[..., Any]]:
    """What a process of a kind can do; imports that take long are done now, so that no answer's time limit pays for them."""
    if kind == "users":
        from redistill.tasks import users

        return users.OPERATIONS
    import math_verify  # noqa: F401
    import reasoning_gym  # noqa: F401

    from redistill.tasks import catalog

    return catalog.OPERATIONS


def _serve(requests: IO[bytes], answers: IO[bytes], operations: Mapping[str, Callable[..., Any]]) -> None:
    for line in requests:
        answers.write(json.dumps(_answer(json.loads(line), operations)).encode() + b"\n")
        answers.flush()


def main() -> None:
    """The helper process: answers go to the first standard output, what generators print goes nowhere. What computes is a
    child of it: when one has to be ended, the next is there at once, without importing everything again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's affair: its step still needs answers
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    operations = _operations(sys.argv[1])
    with contextlib.suppress(OSError, ValueError):  # some systems know no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers.write(b'"ready"\n')
    answers.flush()
    while True:
        child = os.fork()
        if child == 0:
            _serve(sys.stdin.buffer, answers, operations)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return  # nothing more is asked
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        answers.write(json.dumps({"ended": ended}).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
