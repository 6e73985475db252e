"""One jail's process from its start to its end, and the exchange of messages with it. It is used for one program."""

from __future__ import annotations

import functools
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress

from redistill.errors import UserError
from redistill.sandbox import seccomp
from redistill.sandbox.jail import INSIDE, WALLS, Limits, command, compiled, find_bwrap, inner, root

UNSAFE = "unsafe_exec=true"
START_SECONDS = 60.0
"""How long a jail may take to start: tens of milliseconds, but on a machine that is busy."""


class Ended(Exception):
    """The process ended instead of answering. `signal` is the one that ended it, or None when it left with `status`."""

    def __init__(self, status: int) -> None:
        found = -status if status < 0 else status - 128 if status > 128 else None
        super().__init__(status)
        self.status, self.signal = status, found


class Late(Exception):
    """No answer in time."""


class Flood(Exception):
    """An answer longer than may be."""


class Jail:
    """A started jail; `unsafe` is the same program in a plain subprocess with limits. Messages and lines as in inside.py."""

    def __init__(self, limits: Limits, *, unsafe: bool = False) -> None:
        self.limits, self._buffer, self._first = limits, b"", -1
        self._scratch: str | None = None
        if unsafe:
            self._scratch = tempfile.mkdtemp(prefix="redistill-unsafe-")
            self._process = _popen(inner(limits, str(INSIDE)), (), self._scratch)
        else:
            bwrap = find_bwrap()
            assert bwrap is not None, "refuse_without_jail comes first"
            self._start(bwrap)
        os.set_blocking(self._in, False)

    def _start(self, bwrap: str) -> None:
        told, telling = os.pipe()
        given = (_pipe_with(seccomp.bpf()), _pipe_with(compiled()), telling)
        try:
            self._process = _popen(command(bwrap, self.limits, *given), given, "/")
        finally:
            for end in given:
                os.close(end)
        with os.fdopen(told, "rb") as stream, suppress(ValueError, KeyError, OSError):
            # The jail's first process by a handle that no other process can take over: when it ends, all in the jail does.
            self._first = os.pidfd_open(json.loads(stream.read())["child-pid"])

    @property
    def _in(self) -> int:
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    @property
    def _out(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def alive(self) -> bool:
        """Whether it still waits for a message."""
        return self._process.poll() is None

    def line(self, deadline: float, message: bytes | None = None) -> bytes:
        """Send a message, if there is one, and return the line that answers it, without its end. Raises Ended, Late or
        Flood, and Flood too when it spoke before it was asked."""
        left = memoryview(b"" if message is None else b"%d\n" % len(message) + message)
        if message is not None and self._spoke():
            raise Flood
        while b"\n" not in self._buffer:
            if len(self._buffer) > 8 * self.limits.output + 65536:  # JSON may take six characters for one
                raise Flood
            seconds = deadline - time.monotonic()
            ready = select.poll()
            ready.register(self._out, select.POLLIN)
            if left:
                ready.register(self._in, select.POLLOUT)
            events = dict(ready.poll(max(0.0, 1000 * seconds))) if seconds > 0 else {}
            if not events:
                raise Late
            if self._in in events:
                try:
                    left = left[os.write(self._in, left) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    left = left[len(left) :]  # what it says about its end comes from reading
            if self._out in events:
                self._fill()
        answer, _, self._buffer = self._buffer.partition(b"\n")
        return answer

    def _spoke(self) -> bool:
        """Whether there is output that nobody asked for."""
        ready = select.poll()
        ready.register(self._out, select.POLLIN)
        if not self._buffer and ready.poll(0):
            self._fill()
        return bool(self._buffer)

    def _fill(self) -> None:
        chunk = os.read(self._out, 65536)
        if not chunk:
            raise Ended(self._wait())
        self._buffer += chunk

    def _wait(self) -> int:
        """The exit status of a process that closed its output; one that closed it and lives on is ended."""
        try:
            return self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.kill()
            return 0

    def kill(self) -> None:
        """End everything in it, whatever state it is in."""
        if self._first >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(self._first, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)  # bwrap reaps it, so that no zombie is left to a machine without an init
            os.close(self._first)
            self._first = -1
        if self._scratch is not None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its own session since it began
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None


def _pipe_with(data: bytes) -> int:
    """The reading end of a pipe that holds `data` and ends there; less than the 64 KB that a pipe takes without a reader."""
    reading, writing = os.pipe()
    assert os.write(writing, data) == len(data)
    os.close(writing)
    return reading


def _popen(arguments: list[str], descriptors: tuple[int, ...], folder: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"PYTHONHASHSEED": "0"},
        cwd=folder, pass_fds=descriptors, start_new_session=True, bufsize=0,
    )  # fmt: skip


def started(limits: Limits, *, unsafe: bool = False) -> Jail:
    """A jail that is ready for a program. Raises Ended or Late when it does not start."""
    jail = Jail(limits, unsafe=unsafe)
    try:
        if jail.line(time.monotonic() + START_SECONDS) != b'"ready"':
            raise Ended(0)
    except BaseException:
        jail.kill()
        raise
    return jail


@functools.lru_cache(maxsize=1)
def _why_not() -> str | None:
    """Why there can be no jail on this machine; None when there can."""
    if platform.system() != "Linux":
        return f"bubblewrap needs Linux, and this is {platform.system()}"
    if platform.machine() not in seccomp.ARCHITECTURES:
        return f"there is no filter of system calls for {platform.machine()} (only {', '.join(seccomp.ARCHITECTURES)})"
    bwrap = find_bwrap()
    if bwrap is None:
        return "there is no bwrap on this machine (Debian: apt-get install bubblewrap; else pip install 'redistill[sandbox]')"
    try:
        started(Limits()).kill()
    except (Ended, Late, Flood, OSError):
        words = [bwrap, *WALLS, *root(), "--", *inner(Limits(), "-V")]
        tried = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_SECONDS)
        said = tried.stderr.strip().rpartition("\n")[2] or "it says nothing"
        return f"bwrap cannot make a jail on this machine ({said:.200})"
    return None


def refuse_without_jail(*, unsafe: bool = False) -> None:
    """UserError, in one sentence, where programs cannot be jailed and the user has not accepted that."""
    reason = None if unsafe else _why_not()
    if reason is not None:
        raise UserError(
            f"model-written programs run in a jail only, and {reason}: mend that, or accept the risk with the task's option "
            f"{UNSAFE} (`--unsafe-exec`)"
        )
