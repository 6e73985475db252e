"""Tools: call each tool once, in the order that the links give, with the argument that the order sheet states.

Terse, the sheet "a7cc2.b4a" reads: tool a takes 7 and comes after c, c takes 2 and comes first, b takes 4 and comes after a;
so the calls are "c2", "a7", "b4", one a turn. A call is answered with "+" (done), "x" (not its turn), "v" (wrong argument),
"d" (done before) or "?" (not a call). Reward comes at the end only: 1 when all is done in time; with `partial`, the share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from redistill.core import rng
from redistill.core.task import Prompt
from redistill.tasks.worlds import MAX_ACTION, PlayedTask

NAMES = "abcdefgh"
_CALLS = {"terse": re.compile(r"\s*([a-h])([0-9])\s*"), "english": re.compile(r"\s*([a-h])\(([0-9])\)\s*")}
_REPLIES = {
    "terse": {"done": "+", "early": "x", "value": "v", "again": "d", "malformed": "?"},
    "english": {
        "done": "Done.", "early": "Not yet: another tool comes first.", "value": "Wrong argument.",
        "again": "This tool was called already.", "malformed": "That is not a call: answer with one call such as a(7).",
    },
}  # fmt: skip


class Workshop:
    """One episode of the tools: which calls are due, and how many turns are left."""

    def __init__(self, first: str, calls: Sequence[tuple[str, str]], turns: int, style: str, partial: bool) -> None:
        self.first, self.calls, self.turns, self.style, self.partial = first, list(calls), turns, style, partial
        self.done, self.used = 0, 0
        self.refused: str | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Back to the start; the observation is the order sheet."""
        self.done, self.used, self.refused = 0, 0, None
        return self.first, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One call."""
        if self.done == len(self.calls) or self.used >= self.turns:
            raise RuntimeError("the episode is over: reset first")
        self.used += 1
        reply = self._reply(action)
        if reply == "done":
            self.done += 1
        elif self.refused is None:
            self.refused = f"{self.done + 1}:{'?' if reply == 'malformed' else action.strip()}"
        finished, late = self.done == len(self.calls), self.used >= self.turns
        info: dict[str, Any] = {"malformed": reply == "malformed", "progress": self.done / len(self.calls)}
        reward = 0.0
        if finished or late:
            reward = float(finished) if not self.partial else self.done / len(self.calls)
        if late and not finished:
            info["feedback"] = self._feedback()
        return _REPLIES[self.style][reply], reward, finished, late and not finished, info

    def _reply(self, action: str) -> str:
        match = _CALLS[self.style].fullmatch(action) if len(action) <= MAX_ACTION else None
        if match is None:
            return "malformed"
        name, argument = match.groups()
        if name in [done for done, _ in self.calls[: self.done]]:
            return "again"
        due, value = self.calls[self.done]
        if name != due:
            return "early"
        return "done" if argument == value else "value"

    def _feedback(self) -> str:
        if self.style == "terse":
            return f"{self.done}!{self.refused}"
        return f"{self.done} of {len(self.calls)} calls were done in time; the first refused call was {self.refused}."


@dataclass(frozen=True)
class Tools(PlayedTask):
    """Orders of `steps` (2 to 8) calls, to be done in `steps` + `slack` (0 to 8) turns."""

    steps: int = 5
    slack: int = 1
    partial: bool = False

    name: ClassVar[str] = "tools"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.in_range(steps=(2, len(NAMES)), slack=(0, 8))

    def layout(self, *key: Any) -> Mapping[str, Any]:
        """Which tools in which order with which arguments, and the order of the sheet's entries."""
        tools = [NAMES[i] for i in rng.permutation(len(NAMES), "tools", "names", *key)[: self.steps]]
        draws = rng.uniform("tools", "arguments", *key, range(self.steps))
        sheet = rng.permutation(self.steps, "tools", "sheet", *key).tolist()
        return {"calls": [[name, str(int(u * 10))] for name, u in zip(tools, draws)], "sheet": sheet}

    def from_layout(self, layout: Mapping[str, Any]) -> Prompt:
        """The order sheet as a prompt; the solution is the calls in their order, a hint their names alone."""
        calls = layout["calls"]
        before = [None, *(name for name, _ in calls)]
        entries = [(*calls[i], before[i]) for i in layout["sheet"]]
        names = "".join(name for name, _ in calls)
        if self.style == "terse":
            text = "".join(f"{name}{value}{after or '.'}" for name, value, after in entries)
            return self.made({**layout, "hint": names}, text, [name + value for name, value in calls])
        lines = [
            f"- tool {name} takes {value} and comes {f'after {after}' if after else 'first'}"
            for name, value, after in entries
        ]
        text = (
            "\n".join(["Call every tool of this order once, one call a message.", *lines])
            + "\nA call looks like a(7). What is your next call?"
        )
        return self.made({**layout, "hint": ", ".join(names)}, text, [f"{name}({value})" for name, value in calls])

    def world(self, prompt: Prompt) -> Workshop:
        """The workshop of a prompt."""
        calls = [(str(name), str(value)) for name, value in prompt.data["calls"]]
        return Workshop(prompt.content[-1]["content"], calls, len(calls) + self.slack, self.style, self.partial)
