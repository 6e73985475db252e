"""The commands of docs/turns.md, run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from redistill.cli import main

PAGE = (Path(__file__).parent.parent / "docs" / "turns.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(command)
    assert program == "redistill"
    assert main(words) == 0


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 5
