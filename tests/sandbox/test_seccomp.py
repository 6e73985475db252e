"""The filter of system calls, run by an interpreter of classic BPF that is written here, and its numbers against the kernel's headers."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from redistill.sandbox import seccomp

X86, ARM = 0xC000003E, 0xC00000B7
HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


def run(program: bytes, number: int, architecture: int, arguments: tuple[int, ...] = (0,) * 6) -> int:
    """What the kernel does with the filter: seccomp(2), and the instructions of linux/bpf_common.h."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments)
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x15:
            at += if_true if accumulator == k else if_false
        elif operation == 0x35:
            at += if_true if accumulator >= k else if_false
        else:
            assert operation == 0x06
            return k


def numbers(machine: str) -> dict[str, int]:
    path = Path(HEADERS[machine])
    if not path.exists():
        pytest.skip(f"the kernel's header {path} is not installed")
    text = path.read_text()
    found = {name: int(value) for name, value in re.findall(r"#define __NR_(\w+)\s+(\d+)", text)}
    general = {name: int(value) for name, value in re.findall(r"#define __NR3264_(\w+)\s+(\d+)", text)}
    for name, same in re.findall(r"#define __NR_(\w+) __NR3264_(\w+)", text):
        if same in general:
            found.setdefault(name, general[same])
    return found


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_numbers_are_the_kernels(machine: str, column: int) -> None:
    known = numbers(machine)
    ours = {name: pair[column] for name, pair in seccomp.CALLS.items() if pair[column] is not None}
    assert {name: known.get(name) for name in ours} == ours
    here = seccomp.ARCHITECTURES[machine]
    assert (known["ioctl"], known["clone3"]) == (here.ioctl, here.clone3)


@pytest.mark.parametrize(("machine", "audit", "column"), [("x86_64", X86, 0), ("aarch64", ARM, 1)])
def test_what_is_named_is_allowed_and_all_else_is_not(machine: str, audit: int, column: int) -> None:
    program, here = seccomp.bpf(machine), seccomp.ARCHITECTURES[machine]
    allowed = {pair[column] for pair in seccomp.CALLS.values()} - {None}
    for number in range(1024):
        expected = seccomp.ALLOW if number in allowed else seccomp.UNKNOWN if number == here.clone3 else seccomp.DENY
        assert run(program, number, audit) == expected
    assert len(program) // 8 < 4096


def test_another_architecture_or_abi_is_killed() -> None:
    program = seccomp.bpf("x86_64")
    for audit in (0x40000003, ARM, 0):
        assert run(program, 0, audit) == seccomp.KILL
    for number in (0x40000000, 0x40000001, 0xFFFFFFFF):
        assert run(program, number, X86) == seccomp.KILL


def test_ioctl_by_its_request() -> None:
    program = seccomp.bpf("x86_64")
    for request in range(0x5400, 0x5480):
        expected = seccomp.ALLOW if request in seccomp.TERMINAL else seccomp.DENY
        assert run(program, 16, X86, (0, request, 0, 0, 0, 0)) == expected
    assert 0x5412 not in seccomp.TERMINAL  # TIOCSTI: typing into a terminal


@pytest.mark.parametrize(
    "name",
    ["clone", "fork", "vfork", "clone3", "socket", "socketpair", "connect", "ptrace", "process_vm_readv", "kill", "tkill",
     "pidfd_send_signal", "mount", "umount2", "unshare", "setns", "chroot", "pivot_root", "setuid", "setresuid", "setgroups",
     "capset", "keyctl", "add_key", "bpf", "userfaultfd", "io_uring_setup", "perf_event_open", "memfd_create", "shmget",
     "mq_open", "inotify_init1", "fanotify_init", "mknodat", "prctl", "seccomp", "personality", "settimeofday",
     "clock_settime", "sethostname", "setpriority", "init_module", "kexec_load", "reboot", "swapon", "open_by_handle_at"],
)  # fmt: skip
def test_dangerous_calls_are_not_named(name: str) -> None:
    assert name not in seccomp.CALLS
    number = numbers("x86_64")[name]
    assert run(seccomp.bpf("x86_64"), number, X86) in (seccomp.DENY, seccomp.UNKNOWN)
