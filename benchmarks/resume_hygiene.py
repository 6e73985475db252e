"""A long run on the pocket model, measured from inside its process: memory, file handles, threads, logs, what it keeps."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETTINGS: Mapping[str, Any] = {
    "prompts_per_step": 1, "group_size": 2, "max_new_tokens": 8, "eval_prompts": 4, "utility": "false", "learning_rate": 1e-4,
    "kl": 0.1, "keep_best": 1,
}  # fmt: skip
"""The smallest GRPO run that samples, scores with a copy, updates, evaluates and saves."""


def measure_here(out: Path, steps: int) -> dict[str, Any]:
    """Run in this process, and look at it 20 times; the first fifth is left out, in which pools fill."""
    import torch
    from redistill.build import prepare

    torch.set_num_threads(1)
    seen: list[tuple[float, int, int]] = []
    every = max(1, steps // 20)

    def look(event: str, facts: Mapping[str, Any]) -> None:
        if event == "step" and facts["step"] % every == 0:
            gc.collect()
            status = Path("/proc/self/status").read_text().split("\n")
            kilobytes = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
            seen.append((kilobytes / 1000, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))

    often = max(1, steps // 50)
    given = {**SETTINGS, "steps": steps, "save_every": often, "eval_every": 2 * often}
    run = prepare("grpo", given, out=out, report=look)
    try:
        run.go(False)
    finally:
        run.close()
    kept = seen[len(seen) // 5 :]
    first, last = kept[: len(kept) // 4], kept[-(len(kept) // 4) :]
    return {
        "hygiene_steps": steps,
        "memory_start_mb": round(statistics.median(one[0] for one in first), 1),
        "memory_end_mb": round(statistics.median(one[0] for one in last), 1),
        "handles_start": kept[0][1], "handles_end": kept[-1][1], "threads_start": kept[0][2], "threads_end": kept[-1][2],
        "log_bytes_per_step": round(sum(path.stat().st_size for path in out.glob("*.jsonl")) / steps),
        "checkpoints_left": len(list((out / "checkpoints").iterdir())),
    }  # fmt: skip


def hygiene(steps: int) -> dict[str, Any]:
    """The same in a process of its own."""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory(prefix="redistill-long-") as folder:
        command = [sys.executable, "-m", "benchmarks.resume_hygiene", str(Path(folder) / "run"), str(steps)]
        paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(measure_here(Path(sys.argv[1]), int(sys.argv[2]))))
