"""How the driver and a measuring process talk: one JSON object a line over the process's stdin and stdout.

A worker is started once, loads its model, and then waits: two workers take turns at steps while the other one sleeps, so
what disturbs the machine disturbs both. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Port:
    """The worker's end. Whatever libraries print goes to stderr; stdout carries the protocol alone."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def say(self, **record: Any) -> None:
        """Send one record."""
        self.out.write(json.dumps(record) + "\n")
        self.out.flush()

    def hear(self) -> dict[str, Any]:
        """The next command; the process ends here when there is none."""
        line = sys.stdin.readline()
        command = json.loads(line) if line.strip() else {"do": "stop"}
        if command["do"] == "stop":
            self.out.flush()
            os._exit(0)
        found: dict[str, Any] = command
        return found


class WorkerError(RuntimeError):
    """A worker ended or said that it failed."""


def vllm_environment() -> dict[str, str]:
    """vLLM in the worker's own process, on every core that this process may use (by itself it leaves some out)."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR",
    }  # fmt: skip


class Worker:
    """The driver's end: a process that answers commands."""

    def __init__(self, python: Path | str, module: str, settings: Mapping[str, Any], log: Path, threads: int) -> None:
        environment = {
            **os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TRL_EXPERIMENTAL_SILENCE": "1",
            "HF_DATASETS_CACHE": str(ROOT / ".bench" / "datasets"), "PYTHONWARNINGS": "ignore", **vllm_environment(),
        }  # fmt: skip
        self.name, self.log = module, log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.{module}", json.dumps(dict(settings))], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True,
        )  # fmt: skip
        self.ready = self._read()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer, or its absence, says why
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.strip():
            self.process.wait()
            tail = self.log.read_text(errors="replace").strip().splitlines()[-6:]
            raise WorkerError(
                f"{self.name} ended with status {self.process.returncode}; its log {self.log} ends:\n" + "\n".join(tail)
            )
        found: dict[str, Any] = json.loads(line)
        return found

    def stop(self) -> None:
        """End the process."""
        try:
            if self.process.stdin is not None and self.process.poll() is None:
                self.process.stdin.close()
            self.process.wait(timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


def start_peak() -> None:
    """Forget the peak so far, so that `peak` is of what follows (loading a model is no part of a step). Linux only;
    elsewhere the peak is that of the process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> dict[str, float]:
    """Peak resident memory in GB: `peak_gb` since `start_peak`, `process_peak_gb` of the whole process (getrusage)."""
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform != "darwin" else 1e9) * 1.024
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kilobytes = [float(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return {"peak_gb": kilobytes[0] * 1024 / 1e9 if kilobytes else whole, "process_peak_gb": whole}


def resident() -> float:
    """Resident memory now, in GB (0 where it cannot be read)."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9 if statm.exists() else 0.0


def settings_of(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings a worker was started with."""
    found: dict[str, Any] = json.loads(arguments[1])
    return found
