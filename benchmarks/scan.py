"""Which settings make TRL fastest on this machine: `python -m benchmarks.scan`. One GRPO step with each, sampled and updated.

The result (benchmarks/results/trl-settings.json) is why `plan.py` gives TRL the settings that it does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.models import student
from benchmarks.port import ROOT, Worker, WorkerError
from benchmarks.workload import Workload

RESULT = ROOT / "benchmarks" / "results" / "trl-settings.json"
PLAIN = {"weights": "float32", "autocast": False, "rows": 32, "checkpointing": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "float32, 32 rows": {},
    "float32 products by oneDNN, 32 rows": {"products": "medium"},
    "float32, 8 rows": {"rows": 8},
    "float32, 4 rows": {"rows": 4},
    "float32, 32 rows, checkpointing (TRL's default)": {"checkpointing": True},
    "float32, 32 rows, static cache": {"generation": {"cache_implementation": "static"}},
    "bfloat16 autocast, 32 rows": {"autocast": True},
    "bfloat16 autocast, 8 rows": {"autocast": True, "rows": 8},
    "bfloat16 weights, 32 rows": {"weights": "bfloat16"},
    "bfloat16 weights, 8 rows": {"weights": "bfloat16", "rows": 8},
    "bfloat16 weights and autocast, 32 rows": {"weights": "bfloat16", "autocast": True},
    "float32, 1 row, checkpointing (frugal)": {"rows": 1, "checkpointing": True},
}


def main() -> None:
    """Two steps with each of the settings (the second one counts); what was measured before is kept."""
    work = Workload(new_tokens=int(os.environ.get("NEW_TOKENS", "48")))
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    python = ROOT / ".bench" / "trl" / "bin" / "python"
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    for name, changed in SETTINGS.items():
        if name in found or (len(sys.argv) > 1 and sys.argv[1] not in name):
            continue
        settings = {"method": "grpo", "model": str(student("smollm2-135m")), "work": vars(work), **PLAIN, **changed}
        worker = None
        try:
            worker = Worker(python, "trl_worker", settings, Path(ROOT / ".bench" / "log" / "scan.log"), threads)
            given = [[index + 100] * work.new_tokens for index in range(work.rollouts)]
            worker.ask("step", given=given)
            found[name] = worker.ask("step") | {"threads": threads}
        except WorkerError as error:
            found[name] = {"failed": str(error)[-500:]}
        finally:
            if worker is not None:
                worker.stop()
        print(name, found[name].get("seconds", found[name]), found[name].get("peak_gb"), flush=True)
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
