"""The system calls that a jailed program may make, as a classic BPF filter for `bwrap --seccomp FD`.

A list of what is allowed, not of what is forbidden: whatever is not named here answers EPERM, so calls that a future kernel
brings are closed from the start. What one Python thread needs to compute and to use files is here. No call that makes a process or
a thread, a socket, a namespace, a mount, a memory file, a key or a watch; none that sends a signal to a process or changes an
owner, a user, a clock or a priority. `tgkill` is here because `abort` needs it (inside a process namespace of its own), `execve`
because the filter is already on when the jail starts Python (a program that uses it replaces itself, under the same limits).

The layout of an instruction is the kernel's `struct sock_filter`, that of what is looked at its `struct seccomp_data`
(linux/filter.h, linux/seccomp.h); numbers are those of asm/unistd_64.h and asm-generic/unistd.h, which a test reads.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # ld word [k]; jeq; jge; ret
_NUMBER, _ARCHITECTURE, _SECOND_ARGUMENT = 0, 4, 24  # offsets in struct seccomp_data; the argument's low half
ALLOW, KILL, DENY, UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
"""SECCOMP_RET_ALLOW, _KILL_PROCESS, _ERRNO with EPERM, and with ENOSYS (which makes glibc try `clone` for `clone3`)."""
TERMINAL = (0x5401, 0x5413, 0x5421, 0x541B, 0x5450, 0x5451)
"""Requests that `ioctl` may make: TCGETS (is this a terminal?), TIOCGWINSZ, FIONBIO, FIONREAD, FIONCLEX, FIOCLEX."""

# name: (x86_64, aarch64); None where an architecture has no such call
CALLS: Mapping[str, tuple[int | None, int | None]] = MappingProxyType(
    {
        # files
        "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
        "lstat": (6, None), "lseek": (8, 62), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65),
        "writev": (20, 66), "access": (21, None), "pipe": (22, None), "dup": (32, 23), "dup2": (33, None),
        "sendfile": (40, 71), "fcntl": (72, 25), "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83),
        "truncate": (76, 45), "ftruncate": (77, 46), "getdents": (78, None), "getcwd": (79, 17), "chdir": (80, 49),
        "fchdir": (81, 50), "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None), "creat": (85, None),
        "link": (86, None), "unlink": (87, None), "symlink": (88, None), "readlink": (89, None), "chmod": (90, None),
        "fchmod": (91, 52), "umask": (95, 166), "statfs": (137, 43), "fstatfs": (138, 44), "getdents64": (217, 61),
        "fadvise64": (221, 223), "openat": (257, 56), "mkdirat": (258, 34), "newfstatat": (262, 79),
        "unlinkat": (263, 35), "renameat": (264, 38), "linkat": (265, 37), "symlinkat": (266, 36),
        "readlinkat": (267, 78), "fchmodat": (268, 53), "faccessat": (269, 48), "utimensat": (280, 88),
        "fallocate": (285, 47), "dup3": (292, 24), "pipe2": (293, 59), "preadv": (295, 69), "pwritev": (296, 70),
        "renameat2": (316, 276), "copy_file_range": (326, 285), "statx": (332, 291), "close_range": (436, 436),
        "faccessat2": (439, 439),
        # memory
        "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
        "msync": (26, 227), "madvise": (28, 233),
        # waiting and time
        "poll": (7, None), "select": (23, None), "pselect6": (270, 72), "ppoll": (271, 73), "sched_yield": (24, 124),
        "pause": (34, None), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "getitimer": (36, 102),
        "alarm": (37, None), "setitimer": (38, 103), "gettimeofday": (96, 169), "time": (201, None),
        "clock_gettime": (228, 113), "clock_getres": (229, 114), "times": (100, 153), "futex": (202, 98),
        # itself
        "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
        "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "tgkill": (234, 131),
        "restart_syscall": (219, 128), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178),
        "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177),
        "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150), "getpgrp": (111, None),
        "getpgid": (121, 155), "getsid": (124, 156), "uname": (63, 160), "sysinfo": (99, 179),
        "getrlimit": (97, 163), "setrlimit": (160, 164), "prlimit64": (302, 261), "getrusage": (98, 165),
        "sched_getaffinity": (204, 123), "arch_prctl": (158, None), "set_tid_address": (218, 96),
        "set_robust_list": (273, 99), "rseq": (334, 293), "getrandom": (318, 278), "execve": (59, 221),
        "wait4": (61, 260), "waitid": (247, 95), "exit": (60, 93), "exit_group": (231, 94),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """How the filter tells a machine: AUDIT_ARCH_*, its column of CALLS, and its numbers of two calls with rules of their own."""

    audit: int
    column: int
    ioctl: int
    clone3: int = 435
    foreign_from: int | None = None
    """Numbers from here on are another ABI's (x32) and kill; None where there is none."""


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "x86_64": Architecture(0xC000003E, 0, ioctl=16, foreign_from=0x40000000),
        "aarch64": Architecture(0xC00000B7, 1, ioctl=29),
    }
)


def _instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, k)


def bpf(machine: str | None = None) -> bytes:
    """The filter for `machine` (default: this one), instructions of 8 bytes. KeyError for a machine without a table."""
    here = ARCHITECTURES[machine or platform.machine()]
    numbers = sorted(number for pair in CALLS.values() if (number := pair[here.column]) is not None)
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, here.audit, 1, 0),
        _instruction(_RETURN, KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    if here.foreign_from is not None:
        program += [_instruction(_AT_LEAST, here.foreign_from, 0, 1), _instruction(_RETURN, KILL)]
    program += [_instruction(_EQUAL, here.clone3, 0, 1), _instruction(_RETURN, UNKNOWN)]
    for number in numbers:  # a compare and a return each: no jump is ever longer than its 8 bits
        program += [_instruction(_EQUAL, number, 0, 1), _instruction(_RETURN, ALLOW)]
    program += [_instruction(_EQUAL, here.ioctl, 1, 0), _instruction(_RETURN, DENY)]
    program.append(_instruction(_LOAD, _SECOND_ARGUMENT))
    for request in TERMINAL:
        program += [_instruction(_EQUAL, request, 0, 1), _instruction(_RETURN, ALLOW)]
    program.append(_instruction(_RETURN, DENY))
    return b"".join(program)
