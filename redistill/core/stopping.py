"""Being asked to stop: SIGTERM and Ctrl-C end a run between two steps, with everything saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit statuses as shells give them: 128 and the signal's number."""


class Interrupted(BaseException):
    """A signal asked the run to stop. `checkpoint` is what it can go on from, None when there is none. Like
    KeyboardInterrupt it is no Exception, so that nobody who catches those (a user's verifier) takes it for his own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.checkpoint: Path | None = None


class Stop:
    """What a signal does: inside `held` it is remembered until `check`, elsewhere it raises `Interrupted` at once. A second
    one raises KeyboardInterrupt wherever it comes, a third has the system's own effect."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._held = False

    @property
    def status(self) -> int:
        """The exit status of a process that ends for the signal that came first (Ctrl-C where none was received)."""
        return STATUS[signal.Signals(self.number or signal.SIGINT)]

    def check(self) -> None:
        """Raise `Interrupted` if a signal came while it was held."""
        if self.number is not None:
            raise Interrupted(self.number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that the first signal does not break into."""
        with self._holding(True):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block inside of a held one that may be broken off, since it changes nothing that is saved."""
        with self._holding(False):
            self.check()
            yield

    @contextmanager
    def _holding(self, held: bool) -> Iterator[None]:
        before, self._held = self._held, held
        try:
            yield
        finally:
            self._held = before

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            for each in STATUS:
                signal.signal(each, signal.SIG_DFL)
            raise KeyboardInterrupt
        self.number = number
        if not self._held:
            raise Interrupted(number)

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Receive the process's signals inside the block (only its main thread can)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before: dict[signal.Signals, Any] = {each: signal.signal(each, self._receive) for each in STATUS}
        try:
            yield self
        finally:
            for each, handler in before.items():
                signal.signal(each, signal.SIG_DFL if handler is None else handler)
