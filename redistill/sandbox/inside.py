"""The program that runs in the jail: it takes a model's program and inputs in, and gives outputs out. It judges nothing.

It shares its interpreter with the program it runs, so nothing here is trusted: no expected output, no test and no verdict ever
comes in here, only the program's own source and one input at a time. The worst that a program can do to it is to keep its own
output from being read. Standard library only, few imports (a jail starts for every program), and no import of this package.

In come messages of a length, a newline and a Python literal: (source, function or None), then an input at a time, (positional
arguments, keyword arguments) or the text of standard input. Out goes a line of JSON for each: {"value": v} for an output (`encode`
tells how), {"text": t} for standard output, {"error": [type, message, line or null]}, {"odd": what} for an output that is no
plain value. Arguments of the program: NAME=VALUE for each limit of `resource`, and `output=BYTES`.
"""

from __future__ import annotations

import atexit
import os
import sys
from _json import (
    encode_basestring_ascii as quote,
)  # what `json` itself uses; `json` imports `re`, which takes longer than the rest

TYPE_CHECKING = False  # `typing` has it, and takes as long to import as the jail to start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType, ModuleType
    from typing import Any

DEEPEST = 100
NAME = "<program>"
MESSAGE = 500


class Odd(Exception):
    """An output that is no plain value; the text says what it is."""


def encode(value: Any, room: int = 10**9, depth: int = 0) -> str:
    """A plain value as JSON text: numbers, strings, None and booleans as they are, lists and tuples as arrays, and
    {"dict": [[key, value], ...]}, {"set": [...]}, {"bytes": "latin-1"}. Of a subclass only the data it inherits is read, by the
    base class's own methods. Raises Odd for anything else, for more than DEEPEST levels and for a text longer than `room`."""
    if depth > DEEPEST:
        raise Odd(f"a value nested more than {DEEPEST} deep")
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        text = int.__repr__(value)
    elif isinstance(value, float):
        text = float.__repr__(value).replace("nan", "NaN").replace("inf", "Infinity")
    elif isinstance(value, str):
        text = quote(str.__getitem__(value, slice(room + 1)))  # cut first: the text of a flood is never made
    elif isinstance(value, (bytes, bytearray)):
        text = '{"bytes":' + quote(bytes(memoryview(value)[: room + 1]).decode("latin-1")) + "}"
    elif isinstance(value, (list, tuple)):
        items = list.__iter__(value) if isinstance(value, list) else tuple.__iter__(value)
        text = _array(items, room, depth)
    elif isinstance(value, dict):
        text = '{"dict":' + _array(dict.items(value), room, depth) + "}"
    elif isinstance(value, (set, frozenset)):
        items = set.__iter__(value) if isinstance(value, set) else frozenset.__iter__(value)
        text = '{"set":' + _array(items, room, depth) + "}"
    else:
        raise Odd(f"a value of type {type(value).__name__:.80}")
    if len(text) > room:
        raise Odd(f"more than {room} characters")
    return text


def _array(items: Iterable[Any], room: int, depth: int) -> str:
    parts: list[str] = []
    length = 2
    for item in items:
        parts.append(encode(item, room - length, depth + 1))
        length += len(parts[-1]) + 1
    return "[" + ",".join(parts) + "]"


class Channel:
    """Messages in, lines out, on descriptors of their own: the program's standard streams are others."""

    def __init__(self) -> None:
        self.incoming, self.outgoing = os.dup(0), os.dup(1)
        self.null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(self.null, standard)
        self.read, self.write, self.leave = os.read, os.write, os._exit

    def take(self) -> Any:
        """The next message as a value; ends the process where there is none."""
        head = b""
        while not head.endswith(b"\n"):
            head += self.read(self.incoming, 1) or self.leave(0)
        left, parts = int(head), []
        while left:
            parts.append(self.read(self.incoming, min(left, 65536)) or self.leave(0))
            left -= len(parts[-1])
        return eval(b"".join(parts), {"inf": float("inf"), "nan": float("nan")})

    def give(self, text: str) -> None:
        """Send one line."""
        data = text.encode() + b"\n"
        while data:
            data = data[self.write(self.outgoing, data) :]


def trouble(error: BaseException) -> str:
    """An exception as a line: its type, its message and the last line of the program that it went through."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == NAME:
        line = error.lineno
    try:
        message = str(error.msg) if isinstance(error, SyntaxError) else str(error)
    except BaseException:
        message = ""
    line = line if type(line) is int else None
    return f'{{"error":[{quote(type(error).__name__[:80])},{quote(message[:MESSAGE])},{"null" if line is None else line}]}}'


def module(name: str, code: CodeType) -> ModuleType:
    """The program run as a module of that name."""
    made = type(sys)(name)
    sys.modules[name] = made
    exec(code, made.__dict__)
    return made


def find(made: ModuleType, function: str) -> Callable[..., Any]:
    """The function that a test calls: a name, or Class.method of an object made without arguments."""
    owner, dot, method = function.rpartition(".")
    if dot:
        return getattr(getattr(made, owner)(), method)
    return getattr(made, function)


def call(made: ModuleType, function: str, given: Any, room: int) -> str:
    """Call the function once: a line."""
    try:
        target = find(made, function)
    except AttributeError:
        return f'{{"error":["NameError",{quote(f"the program defines no function {function!r}")},null]}}'
    positional, named = given
    value = target(*positional, **named)
    try:
        return f'{{"value":{encode(value, room)}}}'
    except Odd as odd:
        return f'{{"odd":{quote(str(odd))}}}'


def temporary(path: str, content: bytes = b"") -> int:
    """A descriptor of a file without a name, at its start."""
    made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.unlink(path)
    while content:
        content = content[os.write(made, content) :]
    os.lseek(made, 0, 0)
    return made


def play(code: CodeType, text: str, room: int, folder: str, null: int) -> str:
    """Run the whole program once on a standard input: a line with its standard output."""
    for standard in (0, 1):
        os.dup2(null, standard)  # a program may have closed them: the files below must not take their numbers
    given, taken = temporary(f"{folder}/.in", text.encode("utf-8", "surrogatepass")), temporary(f"{folder}/.out")
    try:
        os.dup2(given, 0)
        os.dup2(taken, 1)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = own = open(1, "w", encoding="utf-8", errors="surrogatepass", closefd=False)  # noqa: SIM115
        try:
            module("__main__", code)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise
        atexit._run_exitfuncs()
        for stream in {id(own): own, id(sys.stdout): sys.stdout}.values():
            stream.flush()
        os.lseek(taken, 0, 0)
        output = b""
        while len(output) <= room and (chunk := os.read(taken, 65536)):
            output += chunk
    finally:
        os.close(given)
        os.close(taken)
    if len(output) > room:
        return f'{{"odd":{quote(f"more than {room} characters of standard output")}}}'
    return f'{{"text":{quote(output.decode("utf-8", "backslashreplace"))}}}'


def guarded(work: Callable[..., str], *given: Any) -> str:
    """What `work` returns, or the line of the exception that it raises."""
    try:
        return work(*given)
    except BaseException as error:
        return trouble(error)


def limit(words: list[str]) -> int:
    """Set the limits that the words name; returns the bytes that an output may have."""
    import resource

    room = 0
    for name, _, value in (word.partition("=") for word in words):
        if name == "output":
            room = int(value)
            continue
        # The soft limit of processor time ends a program with a signal that tells why, the hard one those that ignore it.
        resource.setrlimit(getattr(resource, name), (int(value), int(value) + (name == "RLIMIT_CPU")))
    return room


def main() -> None:
    """Take limits, a program and its inputs; give a line for each."""
    import builtins

    room = limit(sys.argv[1:])
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # which `site` would have defined
    folder, channel = os.getcwd(), Channel()
    channel.give('"ready"')
    source, function = channel.take()
    try:
        code = compile(source, NAME, "exec")
        made = None if function is None else module("program", code)
        answer = '"loaded"'
    except BaseException as error:
        answer = trouble(error)
    channel.give(answer)
    while True:
        given = channel.take()
        if made is None:
            channel.give(guarded(play, code, given, room, folder, channel.null))
        else:
            channel.give(guarded(call, made, function, given, room))


if __name__ == "__main__":
    main()
