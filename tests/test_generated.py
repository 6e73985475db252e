"""What is generated is fresh: the marks and the evidence page; and every verdict is what its interval says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VERDICTS = sorted((ROOT / "evidence").rglob("verdict.json"))
KEYS = {
    "slug",
    "claim",
    "verdict",
    "metric",
    "arms",
    "difference",
    "controls",
    "seeds",
    "budget",
    "command",
    "minutes",
    "versions",
}


@pytest.mark.parametrize("script", ["marks.py", "evidence_page.py", "methods_page.py", "health_page.py"])
def test_generated_files_are_fresh(script: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--check"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", VERDICTS, ids=lambda path: str(path.relative_to(ROOT).parent))
def test_a_verdict_is_what_its_interval_says(path: Path) -> None:
    verdict = json.loads(path.read_text())
    assert set(verdict) >= KEYS
    assert (path.parent / "plot.png").stat().st_size > 1000
    gaps = [(verdict["difference"], verdict["verdict"])] + [(gap, gap["reads"]) for gap in verdict["controls"].values()]
    for gap, word in gaps:
        assert gap["low"] <= gap["estimate"] <= gap["high"]
        assert word == ("shown" if gap["low"] > 0 else "opposite" if gap["high"] < 0 else "not shown")
    for arm in verdict["arms"].values():
        assert len(arm["per_seed"]) == len(verdict["seeds"])


def test_there_is_evidence() -> None:
    assert len(VERDICTS) >= 5
