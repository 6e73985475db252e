"""The README's example is complete: it is cut out of the page and run as a user would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import redistill.methods  # noqa: F401
from redistill.core.method import registered

ROOT = Path(__file__).parent.parent


def test_the_example_method_of_the_readme_runs(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    code = example.group(1)
    assert len(code.splitlines()) <= 45
    (tmp_path / "majority.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "majority.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    accuracy, folder = done.stdout.split()[-2:]
    assert 0.0 <= float(accuracy) <= 1.0
    assert (tmp_path / folder / "result.json").is_file()
    assert (tmp_path / folder / "model" / "model.safetensors").is_file()


def test_every_path_in_the_readmes_links_exists() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            if "method/" in target:  # written when the site is built
                assert Path(target).stem in {"index", *registered()}, f"{page.name}: {target}"
            else:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
