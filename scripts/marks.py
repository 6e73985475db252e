"""Write redistill/assets/marks.json from the tests, recipes and evidence that exist; `--check` fails when it is stale."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from redistill.catalogue import MARKS, registered
from redistill.config import recipe_names

ROOT = Path(__file__).parent.parent
TESTED_IN = {"sft": "test_sft_rft.py", "rft": "test_sft_rft.py"}


def marks() -> dict[str, dict[str, Any]]:
    """The marks of every registered method; `objective` means that a file of its checks is among the tests CI runs."""
    import redistill.methods  # noqa: F401

    found = {}
    for slug in registered():
        tests = ROOT / "tests" / "methods" / TESTED_IN.get(slug, f"test_{slug.replace('-', '_')}.py")
        verdict = ROOT / "evidence" / slug / "verdict.json"
        evidence = json.loads(verdict.read_text())["verdict"] if verdict.is_file() else "none"
        found[slug] = {
            "objective": tests.is_file(),
            "recipe": slug in recipe_names(),
            "evidence": evidence,
            "scale": False,
        }
    return found


if __name__ == "__main__":
    fresh = json.dumps(marks(), indent=1) + "\n"
    if "--check" in sys.argv:
        stale = not MARKS.is_file() or MARKS.read_text() != fresh
        print("marks.json is stale: run scripts/marks.py" if stale else "marks.json is up to date")
        sys.exit(int(stale))
    MARKS.write_text(fresh)
