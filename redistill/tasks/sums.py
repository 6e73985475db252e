"""Sums: "12+34+56=" -> "46+56=102". The smallest task with a chain of thought, for character-level models.

The student continues the equation, reducing it from the left one addition at a time. Only the number after the last
"=" of question and continuation counts, so a bare "102" is right too. Feedback is a few characters long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redistill.core import rng
from redistill.core.task import Prompt, Verdict, content_uid, is_held_out
from redistill.errors import UserError

MAX_TEXT = 4096
"""Characters of an answer that are read; a longer one is a format error, whatever it says."""
_NUMBER = re.compile(r"[0-9]{1,32}")
_BLOCK = 1024


def worked(terms: Sequence[int]) -> str:
    """The worked solution of a sum of two or more terms: (12, 34, 56) -> "46+56=102", (12, 34) -> "46"."""
    steps = []
    total = terms[0]
    for at, term in enumerate(terms[1:], start=2):
        total += term
        steps.append("+".join(map(str, [total, *terms[at:]])))
    return "=".join(steps)


def digit_pattern(attempt: str, truth: str) -> str:
    """The attempt's digits, right-aligned with the truth, "?" for each that is wrong: ("112", "102") -> "1?2".
    "#" comes first when the lengths differ: ("12", "102") -> "#?2". Both are plain digits, not empty."""
    padded = truth.rjust(len(attempt), "?")[-len(attempt) :]
    digits = "".join(a if a == t else "?" for a, t in zip(attempt, padded))
    return digits if len(attempt) == len(truth) else "#" + digits


def _share_right(attempt: str, truth: str) -> float:
    right = sum(a == t for a, t in zip(reversed(attempt), reversed(truth)))
    return right / max(len(attempt), len(truth))


@dataclass(frozen=True)
class Sums:
    """Sums of `terms` (2 to 8) numbers of `digits` (1 to 9) digits, no leading zeros. With `partial`, a wrong answer
    earns the share of its digits that are right, aligned at the right; else only the exact number earns anything."""

    terms: int = 3
    digits: int = 2
    partial: bool = False

    name = "sums"
    wording = "terse"
    reward_range = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not 2 <= self.terms <= 8:
            raise UserError(
                f"task sums terms={self.terms} is outside 2 to 8; the nearest is {min(max(self.terms, 2), 8)}"
            )
        if not 1 <= self.digits <= 9:
            raise UserError(
                f"task sums digits={self.digits} is outside 1 to 9; the nearest is {min(max(self.digits, 1), 9)}"
            )

    def prompt(self, terms: Sequence[int]) -> Prompt:
        """The prompt of the given numbers, whichever split it belongs to; its hint is the solution's first step."""
        content = [{"role": "user", "content": "+".join(map(str, terms)) + "="}]
        solution = worked(terms)
        hint, more, _ = solution.partition("=")
        return Prompt(
            content_uid(content),
            content,
            answer=str(sum(terms)),
            solution=solution,
            data={"hint": hint} if more else {},
        )

    def _numbers(self, *key: int | str | NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the task's width, drawn uniformly; shape [n, terms] when the key ends in an [n, 1] array."""
        low, high = 10 ** (self.digits - 1), 10**self.digits
        return (low + np.floor(rng.uniform("sums", *key, np.arange(self.terms)) * (high - low))).astype(np.int64)

    def train(self, index: int, seed: int) -> Prompt:
        """The prompt at `index` of the stream of `seed`, never a held-out one; a pure function of both."""
        attempt = 0
        while True:
            prompt = self.prompt(self._numbers("train", seed, index, attempt).tolist())
            if not is_held_out(prompt.uid):
                return prompt
            attempt += 1

    def held_out(self, count: int) -> Sequence[Prompt]:
        """The first `count` distinct held-out prompts, the same for every seed; fewer only when there are no more."""
        contents = (9 * 10 ** (self.digits - 1)) ** self.terms
        seen: set[str] = set()
        found: list[Prompt] = []
        block = 0
        while len(found) < count and len(seen) < contents:
            draws = np.arange(block * _BLOCK, (block + 1) * _BLOCK)[:, None]
            for row in self._numbers("held_out", draws).tolist():
                prompt = self.prompt(row)
                if prompt.uid not in seen and is_held_out(prompt.uid):
                    found.append(prompt)
                seen.add(prompt.uid)
            block += 1
        return found[: max(count, 0)]

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        """Judge `answer`, the continuation of the prompt's equation; total on any text.

        Feedback of a wrong number is "=" and its `digit_pattern`; "!n" means no plain number after the last "=", "!l" a
        text of more than `MAX_TEXT` characters; a right answer gets none.
        """
        truth = prompt.answer
        if truth is None:
            raise UserError(f"task sums needs an answer in prompt {prompt.uid}, which has none")
        if len(answer) > MAX_TEXT:
            return Verdict(0.0, feedback="!l", format_ok=False)
        attempt = answer.rpartition("=")[2].strip(" \n")
        if _NUMBER.fullmatch(attempt) is None:
            return Verdict(0.0, feedback="!n", format_ok=False)
        if attempt == truth:
            return Verdict(1.0, answer=attempt)
        reward = _share_right(attempt, truth) if self.partial else 0.0
        return Verdict(reward, feedback="=" + digit_pattern(attempt, truth), answer=attempt)
