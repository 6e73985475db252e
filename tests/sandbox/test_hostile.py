"""Hostile programs change nothing outside, are gone within their limit, and earn nothing; and the suite sees it when they do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redistill.sandbox import Case, Program, jail, process
from redistill.sandbox.jail import Limits
from tests.sandbox.lab import LIMITS, MARGIN, Outside, Trial, hostile, left_over, marked, try_all

NAMES = list(hostile())


@dataclass
class Suite:
    """All trials, and what they changed outside."""

    trials: dict[str, Trial]
    changes: list[str]
    left_over: list[int]


@pytest.fixture(scope="module")
def suite(jailed: None, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    limits = marked()
    with Outside(tmp_path_factory.mktemp("outside")) as outside:
        trials = try_all(outside, NAMES, limits)
        return Suite(trials, outside.changes(), left_over(limits))


@pytest.fixture
def outside(jailed: None, tmp_path: Path) -> Iterator[Outside]:
    with Outside(tmp_path) as made:
        yield made


def test_there_are_programs_enough() -> None:
    assert len(NAMES) >= 100
    assert all((tries and "def answer(x)" in source) or "os._exit" in source or "while" in source
               for tries, source in hostile().values())  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_earns_nothing_and_is_gone_in_time(name: str, suite: Suite) -> None:
    trial = suite.trials[name]
    assert trial.outcome.passed == 0
    assert trial.outcome.failure is not None
    assert trial.seconds < LIMITS.wall + MARGIN


def test_nothing_outside_changed(suite: Suite) -> None:
    assert suite.changes == []
    assert suite.left_over == []


def test_the_same_jail_pays_for_the_right_answer(outside: Outside) -> None:
    source = f"def answer(x):\n    return {outside.secret!r}\n"
    assert outside.try_one(source).outcome.passed == 3


# --- the walls, taken down one at a time: the same programs then get through, so the tests above can fail ----------------


def weakened(
    monkeypatch: pytest.MonkeyPatch, *, without: tuple[str, ...] = (), replace: dict[str, list[str]] | None = None
) -> None:
    """Take words out of a jail's command line (`--seccomp` and `--size` with their values), or put others in their place."""
    build = process.command

    def command(*given: object) -> list[str]:
        words, kept = iter(build(*given)), []  # type: ignore[arg-type]
        for word in words:
            if word in without:
                if word in ("--seccomp", "--size"):
                    next(words)
                continue
            kept += (replace or {}).get(word, [word])
        return kept

    monkeypatch.setattr(process, "command", command)


@pytest.mark.parametrize("name", ["loopback", "abstract_socket"])
def test_without_its_own_network_and_the_filter_a_server_is_reached(
    name: str, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    weakened(monkeypatch, without=("--unshare-net", "--seccomp"))
    assert outside.try_one(hostile()[name][1]).outcome.passed == 3
    assert "connections" in outside.changes()


def test_either_of_network_and_filter_is_enough(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("--unshare-net", "--seccomp"):
        with monkeypatch.context() as patch:
            weakened(patch, without=(word,))
            assert outside.try_one(hostile()["loopback"][1]).outcome.passed == 0


@pytest.mark.parametrize("name", ["read_file", "read_passwords", "read_by_symlink", "read_by_dots"])
def test_with_the_whole_disk_in_it_files_are_read(name: str, outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    weakened(monkeypatch, replace={"--tmpfs": ["--tmpfs", "/tmp", "--ro-bind", str(outside.folder), str(outside.folder),
                                               "--ro-bind", "/etc", "/etc", "--dir"]})  # fmt: skip
    assert outside.try_one(hostile()[name][1]).outcome.passed >= 1


def test_with_a_writable_folder_files_are_written(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    weakened(monkeypatch, replace={"--tmpfs": ["--tmpfs", "/tmp", "--bind", str(outside.folder), str(outside.folder),
                                               "--dir"]})  # fmt: skip
    assert outside.try_one(hostile()["write_outside"][1]).outcome.passed == 3
    assert "files" in outside.changes()


def test_with_the_environment_of_the_run_it_is_read(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    weakened(monkeypatch, replace={"--chdir": ["--setenv", "REDISTILL_CANARY", outside.secret, "--chdir"]})
    assert outside.try_one(hostile()["environment"][1]).outcome.passed == 3


def test_without_the_filter_and_its_own_processes_others_are_ended(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    weakened(monkeypatch, without=("--seccomp", "--unshare-pid"))
    assert outside.try_one(hostile()["signal_by_descriptor"][1]).outcome.passed >= 1
    outside.process.wait(5)
    assert "process" in outside.changes()


@pytest.mark.parametrize("name", ["posix_spawn", "unshare", "inotify", "memory_files"])
def test_without_the_filter_what_it_forbids_is_done(
    name: str, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    weakened(monkeypatch, without=("--seccomp",))
    assert outside.try_one(hostile()[name][1]).outcome.passed >= 1


def test_without_a_size_tmp_is_filled(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    weakened(monkeypatch, without=("--size",))
    assert outside.try_one(hostile()["fill_tmp"][1]).outcome.passed >= 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may write the kernel's settings")
def test_with_the_usual_proc_root_writes_the_kernels_settings(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    weakened(monkeypatch, replace={"--size": ["--proc", "/proc", "--size"]})
    assert outside.try_one(hostile()["write_proc_sys"][1]).outcome.passed == 3


@pytest.mark.parametrize(("limit", "name"), [("RLIMIT_FSIZE", "sparse_file"), ("RLIMIT_NOFILE", "descriptors")])
def test_without_a_limit_it_is_passed(limit: str, name: str, outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    words = Limits.words
    monkeypatch.setattr(Limits, "words", lambda self: [word for word in words(self) if not word.startswith(limit)])
    assert outside.try_one(hostile()[name][1]).outcome.passed >= 1


NAIVE = """
import sys
source, expected = sys.argv[1:]
space = {}
exec(source, space)
assert space["answer"](0) == expected
print("PASSED")
"""


@pytest.mark.parametrize("name", ["equal_to_everything", "text_equal_to_everything", "stack_frames", "print_and_leave"])
def test_a_tester_that_compares_beside_the_program_is_fooled(name: str, tmp_path: Path) -> None:
    with Outside(tmp_path) as outside:
        forged = "def answer(x):\n    import os\n    print('PASSED', flush=True)\n    os._exit(0)\n"
        source = outside.filled(hostile()[name][1]) if name in NAMES else forged
        told = subprocess.run([sys.executable, "-c", NAIVE, source, outside.secret], capture_output=True, text=True)
        assert (told.returncode, told.stdout) == (0, "PASSED\n")


def test_a_comparison_by_the_programs_own_equality_would_pay(outside: Outside) -> None:
    """The judge compares what was inherited: a text's letters, not what its class says of them."""
    source = 'class Text(str):\n    def __eq__(self, other): return True\n    __hash__ = None\ndef answer(x): return Text("%s")'
    assert outside.try_one(source % outside.secret).outcome.passed == 3
    assert outside.try_one(source % "wrong").outcome.passed == 0


def test_programs_do_not_meet(jailed: None) -> None:
    from redistill.sandbox import Pool

    leaves = Program(hostile()["leave_for_the_next"][1], "answer", [Case(((0,), {}), "x")])
    looks = Program("import os\ndef answer(x): return sorted(os.listdir('/tmp')), 'PYTHONSTARTUP' in os.environ", "answer",
                    [Case(((0,), {}), [[], False])])  # fmt: skip
    pool = Pool(LIMITS, workers=1)
    try:
        outcomes = pool.judge([leaves, looks, leaves, looks])
    finally:
        pool.close()
    assert [outcome.passed for outcome in outcomes] == [0, 1, 0, 1]


def test_the_root_holds_python_and_nothing_else(jailed: None, outside: Outside) -> None:
    """Names in the root and what is open, seen from inside."""
    seen = outside.try_one(
        "import os\n"
        "def answer(x):\n"
        "    fds = [fd for fd in range(64) if os.path.exists('/dev') and _open(fd)]\n"
        "    return [sorted(os.listdir('/')), len(fds), dict(os.environ), os.getuid(), os.getcwd()]\n"
        "def _open(fd):\n"
        "    try:\n        os.fstat(fd)\n        return True\n    except OSError:\n        return False\n"
    ).outcome.failure  # fmt: skip
    assert seen is not None
    assert seen.actual is not None
    top = {path.split("/")[1] for path in jail._python()[1]} | {"usr", "lib", "dev", "tmp", "inside.pyc"}
    names = {name for name in top | {"lib64", "lib32"} if f"'{name}'" in seen.actual}
    assert names >= top
    assert seen.actual.endswith("65534, '/tmp']")
    assert "], 6, {" in seen.actual  # the three standard streams (nothing), the two channels, the program's own none
