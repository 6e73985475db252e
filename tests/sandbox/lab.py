"""What the hostile programs are let loose on: something outside that an escape would read, change or end, and a record of it.

The expected output is a secret that lies outside of the jail: in a file, a variable of the environment, shared memory, this process's
memory and the greeting of three servers. So a program that reads the machine earns its reward, and a test sees it. `@ESCAPED@`
in a program is the secret itself, which it returns where a forbidden thing succeeded.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redistill.sandbox import Case, Limits, Outcome, Program
from redistill.sandbox.pool import converse
from redistill.sandbox.process import started

FOLDER = Path(__file__).with_name("hostile")
LIMITS = Limits(seconds=1, memory_mb=256, output=100_000)
MARGIN = 3.0
"""Seconds beyond its limit in which a program must be gone, whatever the machine is doing."""
QUESTIONS = 3


def hostile() -> dict[str, tuple[str, str]]:
    """name: (what it tries, program) of every hostile program."""
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(FOLDER.glob("*.txt")):
        for part in path.read_text().split("=== ")[1:]:
            head, _, source = part.partition("\n")
            name, _, tries = head.partition(": ")
            assert name not in found, f"{name} is there twice"
            found[name] = (tries, source)
    return found


@dataclass(frozen=True)
class Trial:
    """What became of one program."""

    outcome: Outcome
    seconds: float


class Outside:
    """The things outside, inside a `with` block; `changes` tells what is not as it was."""

    def __init__(self, folder: Path) -> None:
        self.secret = "secret-" + secrets.token_hex(16)
        self.folder, self.connections = folder, 0
        self.signals: list[int] = []

    def __enter__(self) -> Outside:
        self.file = self.folder / "canary.txt"
        self.file.write_text(self.secret)
        os.environ["REDISTILL_CANARY"] = self.secret
        self.shared = Path("/dev/shm") / f"redistill-{self.secret[7:15]}"
        if self.shared.parent.is_dir():
            self.shared.write_text(self.secret)
        self.process = subprocess.Popen(["sleep", "600"])
        self.abstract = f"redistill-{self.secret[7:15]}"
        tcp = socket.create_server(("127.0.0.1", 0))
        self.port = tcp.getsockname()[1]
        self.servers = [tcp, _unix("\0" + self.abstract), _unix(str(self.folder / "socket"))]
        for server in self.servers:
            threading.Thread(target=self._greet, args=(server,), daemon=True).start()
        self.handlers = {number: signal.signal(number, self._count) for number in (signal.SIGUSR1, signal.SIGTERM)}
        self.before = self._state()
        return self

    def __exit__(self, *given: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        for server in self.servers:
            server.close()
        self.process.kill()
        self.process.wait()
        self.shared.unlink(missing_ok=True)
        del os.environ["REDISTILL_CANARY"]

    def _count(self, number: int, frame: object) -> None:
        self.signals.append(number)

    def _greet(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                connection.sendall(self.secret.encode())

    def _state(self) -> dict[str, Any]:
        """Everything outside that a program of the suite goes for."""
        core = Path("/proc/sys/kernel/core_pattern")
        return {
            "files": {str(path): path.is_file() and path.read_text() for path in sorted(self.folder.rglob("*"))},
            "python": hashlib.sha256(Path(os.__file__).read_bytes()).hexdigest(),
            "temporary files": [name for name in os.listdir("/tmp") if name in ("left", "link", "sparse", "disk")],
            "process": self.process.poll(), "connections": self.connections, "signals": list(self.signals),
            "host name": socket.gethostname(), "core pattern": core.read_text() if core.exists() else None,
            "clock": abs(time.time() - time.monotonic() - _STARTED) < 60, "environment": dict(os.environ),
        }  # fmt: skip

    def changes(self) -> list[str]:
        """Names of what is not as it was."""
        now = self._state()
        return [name for name, value in self.before.items() if now[name] != value]

    def filled(self, source: str) -> str:
        """A program with the places of the things outside."""
        places = {
            "ESCAPED": self.secret, "FILE": self.file, "DIR": self.folder, "PID": self.process.pid,
            "PARENT": os.getpid(), "PORT": self.port, "ABSTRACT": self.abstract, "SHM": self.shared.name,
        }  # fmt: skip
        for name, place in places.items():
            source = source.replace(f"@{name}@", str(place))
        return source

    def program(self, source: str) -> Program:
        """A hostile program as one to be judged: its tests ask for the secret."""
        tests = [Case(((number,), {}), self.secret) for number in range(QUESTIONS)]
        return Program(self.filled(source), "answer", tests, all_tests=True)

    def try_one(self, source: str, limits: Limits = LIMITS, *, unsafe: bool = False) -> Trial:
        """Judge one program in a jail of its own; the seconds are from its first byte to the last sign of it."""
        jail = started(limits, unsafe=unsafe)
        began = time.monotonic()
        try:
            outcome = converse(jail, self.program(source))
        finally:
            jail.kill()
        return Trial(outcome, time.monotonic() - began)


_STARTED = time.time() - time.monotonic()


def _unix(path: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    return server


def marked() -> Limits:
    """Limits by which this process's jails are told from all others of the machine (see `left_over`)."""
    return replace(LIMITS, output=LIMITS.output + os.getpid() % 100_000)


def left_over(limits: Limits) -> list[int]:
    """Processes of the machine that are jails with these limits."""
    word = f"output={limits.output}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def try_all(outside: Outside, names: Sequence[str], limits: Limits, at_once: int = 8) -> dict[str, Trial]:
    """Every named program, several at once."""
    programs = hostile()
    with ThreadPoolExecutor(at_once) as threads:
        trials = threads.map(lambda name: outside.try_one(programs[name][1], limits), names)
        return dict(zip(names, trials))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made, Outside(Path(made)) as outside:
        began, limits = time.monotonic(), marked()
        for name, trial in try_all(outside, sys.argv[1:] or list(hostile()), limits).items():
            failure = trial.outcome.failure
            told = (
                f"{failure.kind} {failure.error} {failure.told} {failure.actual or ''}"[:110] if failure else "REWARD"
            )
            print(f"{name:32} {trial.outcome.passed} {trial.seconds:5.2f} {told}")
        print("changes:", outside.changes(), "left over:", left_over(limits), f"{time.monotonic() - began:.1f} s")
