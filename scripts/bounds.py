"""Test both ends of the ranges in pyproject.toml: `python scripts/bounds.py low` (or `high`), or `--pins` to see what it would install.

`low` installs the lowest version that each range names, `high` the newest that the ranges allow, each into a fresh environment
`.bounds/<end>`, and runs a smoke subset of the tests there. What came of it goes to benchmarks/results/bounds.json, from which
docs/reliability.md is made. A range whose lowest version does not exist, does not install or does not pass is not true: mend
it. An environment that has what is wanted already is used again; `--install` stops there.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "bounds.json"
SMOKE = [
    "tests/objectives/test_divergence.py", "tests/core/test_state.py", "tests/core/test_update.py", "tests/tasks/test_files.py",
    "tests/tasks/test_verifiers.py", "tests/text/test_domain.py", "tests/text/test_models.py", "tests/text/test_sampling.py",
    "tests/vision/test_vision_domain.py", "tests/generation/test_generation_domain.py", "tests/embodied/test_embodied_domain.py",
    "tests/methods/test_grpo.py", "tests/methods/test_sdpo.py", "tests/test_trackers.py",
]  # fmt: skip
"""Files that together touch every dependency: enough to see that a version works, minutes instead of the whole suite."""
TOOLS = ("ruff", "mypy")
"""Tools of the developers whose newest version may complain of more: pinned by constraints.txt, not by a range's ends."""
_LOWEST = re.compile(r">=\s*([0-9][0-9a-z.]*)")


def requirements() -> list[str]:
    """Every requirement of the package and of its extras, once."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    return [each for each in dict.fromkeys(listed) if name_of(each) not in TOOLS]


def name_of(requirement: str) -> str:
    """Its package."""
    return re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0]


def pins(end: str) -> list[str]:
    """What to ask pip for: the lowest version of each range, or the ranges themselves. ValueError for one without both ends."""
    found = []
    for requirement in requirements():
        lowest = _LOWEST.search(requirement)
        if lowest is None or "<" not in requirement:
            raise ValueError(f"pyproject.toml: {requirement!r} needs a lower and an upper bound")
        found.append(f"{name_of(requirement)}=={lowest.group(1)}" if end == "low" else requirement)
    return found


def run(command: list[str], log: Path) -> int:
    """A command whose output goes to a file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("a") as file:
        return subprocess.run(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
        ).returncode


def measure(end: str) -> dict[str, Any]:
    """Install one end, test it, and say what came of it."""
    folder = ROOT / ".bounds" / end
    log, python = folder.with_suffix(".log"), str(folder / "bin" / "python")
    wanted, marker = pins(end), folder / "wanted.txt"
    if not marker.is_file() or marker.read_text() != "\n".join(wanted):
        if not Path(python).exists():
            venv.create(folder, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--upgrade"]
        if run([*pip, *wanted], log):
            raise SystemExit(f"the {end} end does not install: see {log}")
        marker.write_text("\n".join(wanted))
    log.write_text("")
    if "--install" in sys.argv:
        raise SystemExit(0)
    listed = json.loads(subprocess.check_output([python, "-m", "pip", "list", "--format", "json"], text=True))
    versions = {each["name"].lower().replace("_", "-"): each["version"] for each in listed}
    run(
        [
            python,
            "-m",
            "pytest",
            *SMOKE,
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=",
            *(["-x"] if "-x" in sys.argv else []),
        ],
        log,
    )
    last = next((line for line in reversed(log.read_text().splitlines()) if " passed" in line or " failed" in line), "")
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    return {
        "date": datetime.date.today().isoformat(), "python": platform.python_version(), "tests": counts,
        "versions": {name_of(each): versions.get(name_of(each).lower(), "?") for each in wanted},
    }  # fmt: skip


def main() -> int:
    """Measure the ends that are named and keep what came of it."""
    ends = [each for each in sys.argv[1:] if each in ("low", "high")] or ["low", "high"]
    if "--pins" in sys.argv:
        print("\n".join(pins(ends[0])))
        return 0
    kept = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    for end in ends:
        kept[end] = measure(end)
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        print(f"{end}: {kept[end]['tests']}; {kept[end]['versions']}")
    bad = any(kept[end]["tests"].get(word) for end in ends for word in ("failed", "error", "errors"))
    return int(bad or not all(kept[end]["tests"].get("passed") for end in ends))


if __name__ == "__main__":
    sys.exit(main())
