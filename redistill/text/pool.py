"""A black-box teacher as a file: what it wrote to which prompt, one JSON object a line.

{"prompt": "2+3=", "answer": "5"}
{"messages": [{"role": "user", "content": "2+3="}], "answers": ["5", "2+3=5"]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redistill.core.task import Prompt, content_uid
from redistill.errors import UserError, nearest

_KEYS = ("prompt", "messages", "answer", "answers")


class AnswerPool:
    """Answers by prompt. Raises UserError, naming the line, for a file that is not what the module's text shows."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: dict[str, list[str]] = {}
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"teacher text({path}) cannot be read: {error}") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                self._add(line, f"teacher text({path}) line {number}")
        if not self.found:
            raise UserError(f"teacher text({path}) holds no answers")

    def answers(self, prompt: Prompt) -> list[str]:
        """The answers to a prompt, in the file's order; empty when there are none."""
        return self.found.get(content_uid(prompt.content), [])

    def _add(self, line: str, where: str) -> None:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{where} is not a JSON object")
        for key in row:
            if key not in _KEYS:
                raise UserError(f"{where} has a key {key!r} that is not known{nearest(key, _KEYS)}")
        told = _one_of(row, ("answer", "answers"), where)
        answers = [told] if "answer" in row else told
        if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
            raise UserError(f"{where}: an answer is text that is not empty, and `answers` a list of them")
        asked = _one_of(row, ("prompt", "messages"), where)
        messages = [{"role": "user", "content": asked}] if "prompt" in row else asked
        self.found.setdefault(content_uid(messages), []).extend(answers)


def _one_of(row: Mapping[str, Any], keys: tuple[str, str], where: str) -> Any:
    there = [key for key in keys if key in row]
    if len(there) != 1:
        raise UserError(f"{where} must have one of the keys {keys[0]!r} and {keys[1]!r}")
    return row[there[0]]
