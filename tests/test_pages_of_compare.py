"""docs/compare.md and docs/python.md: what they show works, in their order."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
from redistill.cli import main

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_the_commands_of_the_page_on_comparisons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("compare.md", "sh") for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "redistill"
        assert main(words) == 0
    assert "6 runs, 4 of them there already" in capsys.readouterr().out
    found = json.loads(Path("runs/two/compare.json").read_text())
    page = (DOCS / "compare.md").read_text()
    for key in found["methods"]["strict"]:
        assert key in ("slug", "given", "options", "settings", "runs") or f"`{key}`" in page, key


def test_the_code_of_the_page_on_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.py").write_text("\n".join(blocks("python.md", "python")))
    monkeypatch.chdir(tmp_path)
    runpy.run_path("page.py")
    assert (tmp_path / "runs" / "both" / "compare.html").is_file()
