"""Tasks: where prompts come from and how answers are judged. Torch-free.

A task is the first room of the hallway. It yields prompts of two splits that never share a content, and verifies an
answer: a reward in a stated range and, where it can, feedback that says what was wrong.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from redistill.errors import UserError

HELD_OUT_SHARE = 0.2
"""Share of all contents that belongs to the held-out split (decided by a hash of the content, so never by a seed)."""


@dataclass(frozen=True)
class Prompt:
    """One question. `content` is what the student reads (chat messages for language); the rest is evidence."""

    uid: str
    content: Any
    answer: str | None = None
    solution: str | None = None
    """A reference solution (worked where the task can write one), never shown to the student at evaluation."""
    feedback: str | None = None
    """Static feedback that came with a dataset row."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What the verifier needs (JSON values only)."""


@dataclass(frozen=True)
class Verdict:
    """What the judge says of one episode."""

    reward: float
    feedback: str | None = None
    """What was wrong, in words; None when there is nothing to say (never an empty string)."""
    format_ok: bool = True
    answer: str | None = field(default=None, compare=False)
    """The final answer that was read out of the reply; None when none could be."""
    confidence: float | None = field(default=None, compare=False)
    """The confidence between 0 and 1 that the reply states, for tasks that ask for one; None when it states none."""
    limit: str | None = field(default=None, compare=False)
    """The limit ("time", "length", "memory") at which judging was given up; the reward is then the task's lowest. None: judged."""

    def __post_init__(self) -> None:
        if self.feedback is not None and not self.feedback.strip():
            raise ValueError("feedback is None when there is none, never an empty string")


@runtime_checkable
class Task(Protocol):
    """The contract of a task. `reward_range` bounds every reward; the loop refuses a verdict outside it."""

    name: str
    reward_range: tuple[float, float]
    wording: str
    """Name of the wording that views use to render evidence for this task ("english" or "terse")."""

    def train(self, index: int, seed: int) -> Prompt:
        """The prompt at position `index` of the endless training stream of `seed`; a pure function of both."""
        ...

    def held_out(self, count: int) -> Sequence[Prompt]:
        """The first `count` held-out prompts, the same for every seed; fewer when the task has fewer."""
        ...

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        """Judge the text `answer`. Pure, quick, and total: any text gets a verdict."""
        ...


def content_uid(content: Any) -> str:
    """A stable id of a prompt's content: 16 hex digits of the SHA-256 of its canonical JSON."""
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def is_held_out(uid: str) -> bool:
    """Whether a content belongs to the held-out split. Decided by the content alone, so splits can never overlap."""
    return int(hashlib.sha256(f"split:{uid}".encode()).hexdigest()[:8], 16) < HELD_OUT_SHARE * 2**32


def judged(task: Task, pairs: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
    """Checked verdicts on (prompt, answer) pairs, in their order: all at once where the task has a `verify_all(pairs)` (one
    whose judge runs programs side by side), else one by one."""
    many = getattr(task, "verify_all", None)
    found = many(pairs) if many is not None else [task.verify(prompt, answer) for prompt, answer in pairs]
    return [checked_verdict(task, prompt, verdict) for (prompt, _), verdict in zip(pairs, found, strict=True)]


def checked_verdict(task: Task, prompt: Prompt, verdict: Verdict) -> Verdict:
    """Return `verdict` if its reward is finite and inside the task's range, else raise a UserError that names the task."""
    low, high = task.reward_range
    if not (math.isfinite(verdict.reward) and low <= verdict.reward <= high):
        raise UserError(
            f"task {task.name!r} returned reward {verdict.reward!r} for prompt {prompt.uid}, outside its range [{low}, {high}]"
        )
    return verdict
