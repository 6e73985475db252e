"""A second chance as a world: any task played in two turns, where a failed answer is met with a critique."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from redistill.core.task import Prompt, Task, Verdict

CORRECTNESS: Mapping[str, str] = MappingProxyType({"terse": "?", "english": "The answer is not correct."})
"""A critique that says no more than that an answer is wrong, by wording."""


class Retry:
    """Answer, be told what is wrong, answer once more. The episode's reward is the last answer's; `info["progress"]` is each
    answer's own. `told(prompt, verdict)` writes the critique."""

    def __init__(self, task: Task, prompt: Prompt, threshold: float, told: Callable[[Prompt, Verdict], str]) -> None:
        self.task, self.prompt, self.threshold, self.told = task, prompt, threshold, told
        self.used = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Back to the question."""
        self.used = 0
        return str(self.prompt.content[-1]["content"]), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Judge an answer."""
        self.used += 1
        verdict = self.task.verify(self.prompt, action)
        right = verdict.reward >= self.threshold
        over = right or self.used == 2
        info = {"malformed": not verdict.format_ok, "progress": verdict.reward, "feedback": verdict.feedback}
        observation = "." if right else self.told(self.prompt, verdict)
        return observation, verdict.reward if over else 0.0, right, over and not right, info
